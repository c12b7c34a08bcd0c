"""How many network calls do MONAI's inferers need for the quality of ours, on one and the same denoiser?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse import Denoiser


class Size(NamedTuple):
    """How large a profile is."""

    patients: int
    steps: int
    channels: tuple[int, ...]
    samples: int
    ours: tuple[int, ...]  # network calls
    ddim: tuple[int, ...]
    ddpm: tuple[int, ...]
    pndm: tuple[int, ...]
    rflow: tuple[int, ...]
    converged: int


SIZES = {
    "quick": Size(14, 250, (16, 32), 32, (5, 10, 20), (10, 50, 100), (250, 1000), (50,), (10, 50), 100),
    "full": Size(60, 2000, (32, 64), 128, (5, 10, 20, 50), (10, 50, 100), (50, 250, 1000), (50,), (10, 50), 250),
}
DATASET = "pseudo-patients (simulated from MNI152)"
OURS = {"DPM-Solver++ (2M)": "dpmpp-2m", "UniPC": "unipc-2", "DDIM": "ddim"}


@benchmark(
    "medical/samplers",
    paper="Lu et al. 2022, DPM-Solver++, arXiv:2211.01095",
    claim="A high-order solver reaches the quality of MONAI's DDIM and DDPM inferers with a fifth of their network "
    "calls, on the same network.",
    peers=("MONAI DDIM", "MONAI DDPM", "MONAI PNDM", "MONAI RFlow"),
)
def samplers(run: Run) -> None:
    """One trained denoiser, handed to MONAI's ``DiffusionInferer`` as a network that predicts v, and to our samplers.

    All start from the same noise. The distance to the converged solution of the probability-flow ODE is what a
    deterministic sampler is to make small; MMD is against scans of other pseudo-patients, and includes what the network
    itself does wrong. MONAI's schedulers run with their defaults (samples clipped to [-1, 1]) and, as "unclipped",
    without. Its DDPM moves one training step at a call whatever the number of calls, so it needs all thousand of them.
    Its rectified flow gets the same denoiser on that schedule, and solves the same equation along another path.
    """
    import torch

    from suffuse.samplers import Heun, by_name
    from suffuse_medical import metrics
    from suffuse_medical.data import labelled_phantoms
    from suffuse_medical.nets import schedule_of
    from suffuse_medical.prior import fit_prior

    size = SIZES[run.profile]
    with run.stage("data"):
        train = labelled_phantoms(size.patients, seed=100 * run.seed)
        test = labelled_phantoms(max(size.patients // 2, 8), seed=100 * run.seed + 7)
        n = min(size.samples, len(test.images))
        real = test.images[torch.randperm(len(test.images), generator=torch.Generator().manual_seed(run.seed))[:n]]
    with run.stage("train"):
        prior = fit_prior(
            train.images, channels=size.channels, factor=1, steps=size.steps, seed=run.seed, device=run.device,
            progress=run.progress,
        ).to(run.device)  # fmt: skip
        denoiser = prior.with_schedule(schedule_of(monai_scheduler("DDPM", True)))
    noise = torch.randn(n, *train.images.shape[1:], generator=torch.Generator().manual_seed(run.seed)).to(run.device)

    def ours(name: str, calls: int) -> Tensor:
        return by_name(name, steps=calls)(denoiser, x=noise).cpu()

    with run.stage("converged"), torch.no_grad():
        truth = Heun(steps=size.converged // 2)(denoiser, x=noise).cpu()
    drawn: dict[tuple[str, int], Tensor] = {}
    with run.stage("ours"):
        for label, name in OURS.items():
            for calls in size.ours:
                drawn[label, calls] = ours(name, calls)
    with run.stage("MONAI"), torch.no_grad():
        for kind, each in (
            ("DDIM", size.ddim),
            ("DDPM", size.ddpm),
            ("PNDM", size.pndm),
            ("RFlow", size.rflow),
        ):
            for calls in each:
                for clip in (True, False) if kind == "DDIM" else (True,):
                    label = f"MONAI {kind}" if clip else f"MONAI {kind}, unclipped"
                    torch.manual_seed(run.seed)
                    drawn[label, calls] = by_monai(denoiser, kind, clip, calls, noise)

    floor = metrics.rbf_mmd(real[: n // 2], real[n // 2 : 2 * (n // 2)])
    distances = {key: metrics.rbf_mmd(real, x) for key, x in drawn.items()}
    errors = {key: float((x - truth).square().mean().sqrt()) for key, x in drawn.items()}
    for label, calls in drawn:
        row: dict[str, Any] = {
            "dataset": DATASET,
            "method": label,
            "setting": {"nfe": calls},
            "better": "lower",
            "n": n,
        }
        run.row(metric="MMD", value=distances[label, calls], **row)
        if "DDPM" not in label:
            run.row(metric="distance to the converged ODE", value=errors[label, calls], **row)
    run.row(
        dataset=DATASET, method="converged ODE (reference)", metric="MMD", value=metrics.rbf_mmd(real, truth), n=n,
        better="lower", setting={"nfe": size.converged},
    )  # fmt: skip
    run.row(
        dataset=DATASET, method="two halves of the scans (floor)", metric="MMD", value=floor, n=n // 2, better="lower"
    )
    for kind, target in (
        *(("DDIM", calls) for calls in size.ddim[-2:]),
        ("DDPM", size.ddpm[-1]),
        ("RFlow", size.rflow[-1]),
    ):
        rivals = [key for key in drawn if key[0].startswith(f"MONAI {kind}") and key[1] == target]
        for what, score in (("MMD", distances), ("accuracy", errors)):
            if (kind, what) == ("DDPM", "accuracy"):
                continue  # it is not after the solution of the ODE
            best = min(score[key] for key in rivals)
            for label in OURS:
                enough = [calls for calls in size.ours if score[label, calls] <= best]
                if enough:
                    run.row(
                        dataset=DATASET, method=label, metric=f"calls for the {what} of MONAI {kind} at {target}",
                        value=enough[0], better="lower",
                    )  # fmt: skip
    run.note(
        "Accuracy is the distance to the converged ODE; MONAI's is that of its better DDIM, clipped or not. MMD "
        f"between draws of {n} images is uncertain by about {abs(floor):.2g}, its value for two halves of the scans."
    )
    run.figure(
        "calls",
        _figure(drawn, errors, size),
        "Above: distance to the converged solution against network calls. Below: images from the same noise.",
    )


def monai_scheduler(kind: str, clip: bool) -> Any:
    """MONAI's scheduler of that name, with the noise schedule that all of them share here."""
    from monai.networks import schedulers

    if kind == "RFlow":
        return schedulers.RFlowScheduler(num_train_timesteps=1000)
    options: dict[str, Any] = {"prediction_type": "v_prediction"}
    if kind != "PNDM":
        options["clip_sample"] = clip
    return getattr(schedulers, f"{kind}Scheduler")(num_train_timesteps=1000, schedule="linear_beta", **options)


def by_monai(denoiser: Denoiser, kind: str, clip: bool, calls: int, noise: Tensor) -> Tensor:
    """Samples of MONAI's ``DiffusionInferer``."""
    from monai.inferers import DiffusionInferer

    from suffuse.schedules import RectifiedFlow

    scheduler = monai_scheduler(kind, clip)
    scheduler.set_timesteps(calls)
    flow = denoiser.with_schedule(RectifiedFlow())

    def network(x: Tensor, timesteps: Tensor, context: None = None) -> Tensor:
        if kind == "RFlow":  # it wants x0 - eps, where others call eps - x0 the velocity
            return -flow.velocity(x, timesteps.double() / scheduler.num_train_timesteps)
        return denoiser.v(x, (timesteps.double() + 1) / scheduler.num_train_timesteps)

    drawn: Any = DiffusionInferer(scheduler).sample(noise, network, scheduler, verbose=False)  # type: ignore[arg-type]
    return drawn.cpu()


def _figure(drawn: dict[tuple[str, int], Tensor], errors: dict[tuple[str, int], float], size: Size) -> Figure:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from suffuse_medical.data import to_intensity

    few = size.ours[1]
    shown = [("DPM-Solver++ (2M)", few), ("DDIM", few), ("MONAI DDIM", size.ddim[0]), ("MONAI DDIM", size.ddim[-2])]
    shown += [("MONAI DDPM", size.ddpm[0]), ("MONAI DDPM", size.ddpm[-1])]
    figure = plt.figure(figsize=(9.5, 8.5))
    above, below = figure.subfigures(2, height_ratios=(1, 1.4))  # type: ignore[misc]
    axis = above.subplots()
    pictures = below.subplots(3, len(shown))
    for label in dict.fromkeys(label for label, _ in drawn if "DDPM" not in label):
        points = sorted((calls, errors[name, calls]) for name, calls in drawn if name == label)
        axis.plot(*zip(*points, strict=True), "o--" if "MONAI" in label else "o-", label=label, markersize=4)
    axis.set(xscale="log", yscale="log", xlabel="network calls", ylabel="distance to the converged ODE")
    axis.legend(fontsize=7, ncols=2)
    for column, (label, calls) in enumerate(shown):
        for k in range(3):
            small = pictures[k, column]
            small.imshow(to_intensity(drawn[label, calls][k, 0]).T.flip(0).numpy(), cmap="gray", vmin=0, vmax=1)
            small.set_axis_off()
            if k == 0:
                small.set_title(f"{label}, {calls}", fontsize=7)
    above.subplots_adjust(bottom=0.18)
    below.subplots_adjust(left=0, right=1, bottom=0, top=0.93, wspace=0.03, hspace=0.03)
    return figure
