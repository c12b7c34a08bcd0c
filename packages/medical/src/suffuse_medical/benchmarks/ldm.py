"""Is diffusion in a latent space better than in pixels for the same seconds, and what does the autoencoder lose?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


class Size(NamedTuple):
    """How large a profile is."""

    patients: int
    stage1_steps: int
    steps: int
    width: int
    channels: tuple[int, ...]
    samples: int
    calls: int


SIZES = {
    "quick": Size(9, 80, 100, 8, (32, 64), 24, 8),
    "full": Size(48, 3000, 3000, 16, (32, 64), 96, 10),
}
DATASET = "pseudo-patients (simulated from MNI152)"


@benchmark(
    "medical/ldm",
    paper="Rombach et al. 2022, latent diffusion, arXiv:2112.10752",
    claim="For the same training time, diffusion in the latent space of an autoencoder draws images nearer to scans "
    "than diffusion in pixels, and draws them faster.",
    peers=("pixel diffusion at equal seconds", "reconstruction by the autoencoder"),
)
def ldm(run: Run) -> None:
    """Slices of 56 x 64 with lesions, an autoencoder of factor 4, and the same UNet in latents and in pixels.

    The seconds of the latent model include its autoencoder; pixel diffusion then trains for as long. The reconstruction
    is the ceiling of the latent model. The PSNR within lesions says whether the autoencoder keeps what matters: a
    lesion that is lost there cannot be drawn. All of it on pseudo-patients that training has not seen.
    """
    import torch

    from suffuse.samplers import DPMSolverPP
    from suffuse_medical import ldm, metrics
    from suffuse_medical.data import PhantomCohort, axial_slices, group_split, to_intensity
    from suffuse_medical.prior import fit_prior

    size = SIZES[run.profile]
    with run.stage("data"):
        cohort = PhantomCohort(size.patients, sites=("A", "B"), lesions=(1, 3), seed=run.seed)
        everything = axial_slices(cohort[k] for k in range(size.patients))
        items: list[dict[str, Any]] = [{"patient_id": name, "row": i} for i, name in enumerate(everything.patient)]
        sides = group_split(items, {"train": 2 / 3, "test": 1 / 3}, seed=run.seed)
        train, test = (everything[[item["row"] for item in sides[side]]] for side in ("train", "test"))
    assert test.lesion is not None
    # work of a processor is counted whoever else uses it; of a GPU, by the clock
    clock = time.process_time if run.device == "cpu" else time.perf_counter
    common: dict[str, Any] = {
        "seed": run.seed, "device": run.device, "progress": run.progress,
        "precision": "32-true" if run.quick else "bf16-mixed",
    }  # fmt: skip

    autoencoders, seconds = {}, {}
    for kind in ("kl", "vq"):
        start = clock()
        with run.stage(f"autoencoder {kind}"):
            autoencoders[kind] = ldm.fit_autoencoder(
                train.image, kind, width=size.width, steps=size.stage1_steps, batch_size=8, **common
            ).to(run.device)
        seconds[kind] = clock() - start
        with torch.no_grad():
            again = torch.cat([autoencoders[kind](part.to(run.device)).cpu() for part in test.image.split(64)])
        scores = metrics.fidelity(to_intensity(again), to_intensity(test.image), test.brain)
        for metric, better in metrics.FIDELITY.items():
            s = metrics.summarise(scores[metric], test.patient)
            run.row(
                dataset=DATASET, method=f"{kind.upper()} autoencoder (reconstruction)", metric=metric, value=s.mean,
                std=s.std, n=s.n, better=better, unit="dB" if metric == "PSNR" else "",
            )  # fmt: skip
        mask = test.lesion > 0
        error = (to_intensity(again) - to_intensity(test.image)).square()[mask].mean()
        run.row(
            dataset=DATASET, method=f"{kind.upper()} autoencoder (reconstruction)", metric="PSNR in lesions",
            value=float(-10 * error.log10()), n=len(set(test.patient)), better="higher", unit="dB",
        )  # fmt: skip

    n = min(size.samples, len(test.image))
    real = test.image[torch.randperm(len(test.image), generator=torch.Generator().manual_seed(run.seed))[:n]]
    drawn: dict[str, Tensor] = {}
    speed = {}
    start = clock()
    with run.stage("latent diffusion"):
        model = ldm.fit(
            train.image, autoencoders["kl"], channels=size.channels, steps=size.steps, batch_size=16, **common
        ).to(run.device)
    budget = seconds["kl"] + clock() - start
    start = clock()
    drawn["latent diffusion"] = model.sample(n, steps=size.calls, seed=run.seed)
    speed["latent diffusion"] = (clock() - start) / n

    def pixels(steps: int) -> Any:
        return fit_prior(train.image, channels=size.channels, factor=1, steps=steps, batch_size=8, **common)

    with run.stage("pixel diffusion"):
        start = clock()
        pixels(10)
        each = (clock() - start) / 10
        steps = max(int(budget / each), 20)
        start = clock()
        prior = pixels(steps).to(run.device)
        spent = clock() - start
    start = clock()
    drawn["pixel diffusion"] = torch.cat(
        [
            DPMSolverPP(steps=size.calls)(
                prior, shape=(len(part), *train.image.shape[1:]), generator=torch.Generator(run.device).manual_seed(k)
            ).cpu()
            for k, part in enumerate(real.split(16))
        ]
    )
    speed["pixel diffusion"] = (clock() - start) / n
    drawn["reconstruction (ceiling)"] = model.reconstruct(real.to(run.device)).cpu()
    for name, images in drawn.items():
        setting = {} if "ceiling" in name else {"nfe": size.calls}
        run.row(
            dataset=DATASET, method=name, metric="MMD", value=metrics.rbf_mmd(real, images), n=n, better="lower",
            setting=setting, seconds={"latent diffusion": budget, "pixel diffusion": spent}.get(name),
        )  # fmt: skip
        if name in speed:
            run.row(
                dataset=DATASET, method=name, metric="seconds per image", value=speed[name], better="lower", unit="s",
                setting=setting,
            )  # fmt: skip
    half = metrics.rbf_mmd(real[: n // 2], real[n // 2 : 2 * (n // 2)])
    run.row(
        dataset=DATASET, method="two halves of the scans (floor)", metric="MMD", value=half, n=n // 2, better="lower"
    )
    run.note(
        f"Trained for {budget:.0f} s (autoencoder {seconds['kl']:.0f} s, {size.steps} steps in latents) against "
        f"{spent:.0f} s ({steps} steps in pixels). Perceptual loss: offline (edges and spectrum)."
    )
    run.figure(
        "samples",
        _figure(real, drawn),
        "Scans of pseudo-patients that were not trained on, their reconstructions, and samples in latents and pixels.",
    )


def _figure(real: Tensor, drawn: dict[str, Tensor]) -> Figure:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from suffuse_medical.data import to_intensity

    rows = {"scans": real, **dict(sorted(drawn.items(), key=lambda pair: "ceiling" not in pair[0]))}
    columns = 8
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.3 * columns, 1.6 * len(rows)))
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for k, axis in enumerate(line):
            axis.imshow(to_intensity(images[k, 0]).T.flip(0).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        line[0].set_title(name, fontsize=8, loc="left")
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.95, wspace=0.03, hspace=0.18)
    return figure
