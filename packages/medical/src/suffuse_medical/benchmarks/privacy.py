"""Does the copy check find copies and nothing else, and when do small training sets get copied?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


class Size(NamedTuple):
    """How large a profile is."""

    patients: int  # to train on; as many are held out, and as many are fresh
    few: int  # images of the small training set
    embedding_steps: int
    steps: int
    channels: tuple[int, ...]
    drawn: int
    calls: int


SIZES = {
    "quick": Size(12, 12, 300, 120, (16, 32), 40, 8),
    "full": Size(48, 12, 600, 3000, (16, 32), 128, 20),
}
DATASET = "pseudo-patients (simulated from MNI152)"


@benchmark(
    "medical/privacy",
    paper="Dar et al. 2024, memorisation of patient images, arXiv:2402.01054",
    claim="A contrastive copy detector flags the samples of a perfect memoriser and mirrored copies, and hardly any "
    "image of a new patient; a model of few images copies them, and one of many does not.",
    peers=("nearest neighbour in pixels",),
)
def privacy(run: Run) -> None:
    """Controls first: what must be flagged and what must not. Then two diffusion models of the same size and steps.

    A drawn image is flagged when it is nearer to a training image than 98% of held-out images of other
    pseudo-patients are; so 2% of fresh images are flagged by construction. The membership attack tells training from
    held-out images by their denoising error: an area of 0.5 is chance.
    """
    import torch

    from suffuse.exact import EmpiricalDenoiser
    from suffuse.samplers import DPMSolverPP
    from suffuse.schedules import VPLinear
    from suffuse_medical import privacy
    from suffuse_medical.data import labelled_phantoms
    from suffuse_medical.prior import fit_prior

    size = SIZES[run.profile]
    with run.stage("data"):
        train, held_out, fresh = (labelled_phantoms(size.patients, seed=100 * run.seed + k).images for k in (0, 7, 13))
        few = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(run.seed))[: size.few]]
    torch.manual_seed(run.seed)
    with run.stage("copy detector"):
        embedding = privacy.CopyEmbedding(1).fit(
            torch.cat([train, held_out]), steps=size.embedding_steps, seed=run.seed
        )
    generator = torch.Generator().manual_seed(run.seed)
    sampler = DPMSolverPP(steps=size.calls)
    shape = (size.drawn, *train.shape[1:])
    images = {
        "perfect memoriser": (sampler(EmpiricalDenoiser(train, VPLinear()), shape=shape, generator=generator), train),
        "mirrored copies": (train[: size.drawn].flip(2), train),
        "noisy copies": (
            train[: size.drawn] + 0.05 * torch.randn(train[: size.drawn].shape, generator=generator),
            train,
        ),
        "new patients": (fresh, train),
    }
    with run.stage("train and draw"):
        for name, data in ((f"diffusion, {len(few)} images", few), (f"diffusion, {len(train)} images", train)):
            model = fit_prior(
                data, channels=size.channels, factor=1, steps=size.steps, seed=run.seed, device=run.device,
                precision="32-true" if run.quick else "bf16-mixed", progress=run.progress,
            ).to(run.device)  # fmt: skip
            noise = torch.Generator(run.device).manual_seed(run.seed)
            images[name] = sampler(model, shape=shape, generator=noise).cpu(), data
            attack = privacy.membership(model.cpu(), data, held_out[: len(data)], draws=1, seed=run.seed)
            row: dict[str, Any] = {"dataset": DATASET, "method": name, "better": "lower"}
            run.row(metric="membership attack, area", value=attack.auc, n=len(data), **row)
            run.row(metric="membership attack, found at 1% false", value=attack.tpr_at_1_percent, n=len(data), **row)

    found = {}
    for name, (drawn, data) in images.items():
        result = privacy.memorisation(drawn, data, held_out, embedding=embedding)
        found[name] = drawn, data, result
        wanted = "copies" in name or "memoriser" in name
        run.row(
            dataset=DATASET, method=name, metric="flagged as copies", value=result.share, n=len(drawn),
            better="higher" if wanted else "lower",
        )  # fmt: skip
        run.row(
            dataset=DATASET, method=name, metric="flagged as copies, by pixels", value=by_pixels(drawn, data, held_out),
            n=len(drawn), better="higher" if wanted else "lower",
        )  # fmt: skip
        if "diffusion" in name:
            run.note(f"{name}: {result}")
    run.figure(
        "copies",
        _figure({name: entry for name, entry in found.items() if "new" in name or "diffusion" in name}),
        "Above each pair the drawn image that is nearest to any training image, below that training image, with their "
        "similarity.",
    )


def by_pixels(drawn: Tensor, train: Tensor, held_out: Tensor) -> float:
    """The same check with distances of raw voxels: the baseline."""
    import torch

    known = train.flatten(1)
    usual = torch.cdist(held_out.flatten(1), known).amin(1).quantile(0.02)
    return float((torch.cdist(drawn.flatten(1), known).amin(1) < usual).float().mean())


def _figure(found: dict[str, Any]) -> Figure:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from suffuse_medical.data import to_intensity

    columns = 4
    figure, axes = plt.subplots(2 * len(found), columns, figsize=(1.5 * columns, 3.3 * len(found)))
    for block, (name, (drawn, data, result)) in enumerate(found.items()):
        for column, k in enumerate(result.similarity.topk(columns).indices.tolist()):
            pair = (drawn[k, 0], data[result.nearest[k], 0])
            for line, picture in enumerate(pair):
                axis = axes[2 * block + line, column]
                axis.imshow(to_intensity(picture).T.flip(0).numpy(), cmap="gray", vmin=0, vmax=1)
                axis.set_axis_off()
            axes[2 * block, column].set_title(
                f"{name}\n{result.similarity[k]:.3f}" if column == 0 else f"{result.similarity[k]:.3f}", fontsize=7
            )
    figure.tight_layout(pad=0.3)
    return figure
