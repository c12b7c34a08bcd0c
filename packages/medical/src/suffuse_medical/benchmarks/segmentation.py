"""Does an ensemble of diffused masks spread as annotators do, where a UNet draws one mask?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark
from suffuse_medical.benchmarks.hippocampus import hippocampus

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse_medical.data import VolumeFolder
    from suffuse_medical.segmentation import SegmentationPrediction


class Size(NamedTuple):
    """How large a profile is."""

    patients: int
    test: int
    steps: int
    members: int
    volumes: int  # of the hippocampus, at most; 0 for none


SIZES = {
    "quick": Size(patients=30, test=10, steps=250, members=8, volumes=0),
    "full": Size(patients=160, test=32, steps=2000, members=16, volumes=260),
}
CALLS = 10
METRICS = {"Dice": "Dice", "GED2": "GED^2"}
MANY, ONE = "diffused masks, ensemble", "UNet"
LESIONS, HIPPOCAMPUS = "pseudo-patients (simulated from MNI152), three annotators", "Task04 hippocampus, coronal slices"


@benchmark(
    "medical/segmentation",
    paper="Wolleb et al. 2022, Diffusion models for implicit image segmentation ensembles, arXiv:2112.03145",
    claim="Masks drawn by a diffusion model agree with a UNet's on average and differ as annotators differ, which a "
    "UNet's one mask cannot.",
    peers=("UNet of the same architecture, optimiser, steps and batches",),
)
def segmentation(run: Run) -> None:
    """Lesions on FLAIR-weighted pseudo-patients, outlined by three annotators: tight, exact and generous, by a voxel.

    Training sees one annotator per slice, at random. Dice (against the exact outline, all slices of a patient together)
    is averaged over patients; GED^2 compares the masks of the model with those of all three annotators, slice by slice,
    and ECE is the calibration of the probability that annotators call a voxel lesion. As many masks of annotators drawn
    at random are what a perfect model would do, with so few members. The full profile (in bfloat16) adds the
    hippocampus of the Medical Segmentation Decathlon, where ``SUFFUSE_DATA`` has it: anterior and posterior, one
    annotator, patients split at random.
    """
    import torch

    from suffuse_medical import segmentation as task
    from suffuse_medical.baselines import UNetSegmentation
    from suffuse_medical.data import LabelSchema, PhantomCohort, cohort_slices
    from suffuse_medical.segmentation import SegmentationPrediction

    size = SIZES[run.profile]
    schema = LabelSchema(["background", "lesion"])
    with run.stage("data"):

        def cohort(n: int, seed: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
            slices = cohort_slices(
                PhantomCohort(
                    n, sequences=("FLAIR",), sites=("A", "B"), seed=1000 * run.seed + seed, lesions=(3, 8),
                    lesion_radius=10.0, lesion_contrast=0.6,
                )
            )  # fmt: skip
            assert slices.lesion is not None
            sick = slices.lesion.flatten(1).sum(1).ge(4).nonzero().flatten().tolist()
            slices = slices[sick if seed == 0 else sick[::4]]
            assert slices.lesion is not None
            return slices.image, slices.lesion, slices.patient

        images, exact, _ = cohort(size.patients, 0)
        test, truth, patients = cohort(size.test, 1)
        generator = torch.Generator().manual_seed(run.seed)
        chosen = torch.randint(3, (len(images),), generator=generator)
        masks = annotators(exact)[chosen, torch.arange(len(images))]

    options: dict[str, Any] = {"steps": size.steps, "seed": run.seed, "device": run.device}
    diffusion = options | {"precision": "32-true" if run.quick else "bf16-mixed", "progress": run.progress}
    with run.stage("train"):
        denoiser = task.fit(images, masks, schema, out=run.out / "model", **diffusion).to(run.device)
    with run.stage("train the UNet"):
        unet = UNetSegmentation(2, **options).fit(images, schema.one_hot(masks))

    with run.stage("lesions"):
        found = task.predict(denoiser, test, schema, n=size.members, steps=CALLS, seed=run.seed)
        probability = unet.predict(test)
        plain = _single(probability, schema)
        drawn = annotators(truth)[:, :, 0]
        again = torch.randint(3, (size.members, len(truth)), generator=generator)
        outlined = drawn[again, torch.arange(len(truth))]
        perfect = SegmentationPrediction(torch.stack([1 - outlined, outlined], 2), schema=schema)
        predictions = {MANY: (found, 1 - found.mean[:, 0]), ONE: (plain, 1 - probability[:, 0])}
        predictions["annotators drawn at random (ceiling)"] = perfect, 1 - perfect.mean[:, 0]
        _score(run, LESIONS, predictions, truth, patients, drawn)
        run.figure(
            "masks",
            _figure(test, found, plain, drawn),
            "Lesion slices: image, the three annotators' masks added up, the UNet's mask, three members of the "
            "ensemble, their mean, and the entropy in bits.",
        )
    run.note("Lesions are simulated spheres; the annotators differ by one voxel, by construction.")
    if size.volumes and (volumes := hippocampus(run)):
        _hippocampus(run, size, volumes)


def annotators(exact: Tensor) -> Tensor:
    """(3, N, 1, H, W): the mask (N, 1, H, W) smaller by a voxel, as it is, and larger by a voxel."""
    import torch
    import torch.nn.functional as F

    smaller = 1 - F.max_pool2d(1 - exact, 3, 1, 1)
    return torch.stack([smaller, exact, F.max_pool2d(exact, 3, 1, 1)])


def _single(probability: Tensor, schema: Any) -> SegmentationPrediction:
    """A UNet's answer as an ensemble of one: its likeliest mask."""
    from suffuse_medical.segmentation import SegmentationPrediction

    return SegmentationPrediction(schema.one_hot(schema.stored(probability))[None], schema=schema)


def _score(
    run: Run,
    dataset: str,
    predictions: dict[str, tuple[SegmentationPrediction, Tensor]],
    truth: Tensor,
    patients: tuple[str, ...],
    drawn: Tensor | None,
) -> None:
    """Rows of predictions by method, each with its probability (N, H, W) of the foreground."""
    import numpy as np

    from suffuse_medical import segmentation as task

    scores = {}
    for method, (prediction, share) in predictions.items():
        schema = prediction.schema
        assert schema is not None
        everyone = (1 - schema.one_hot(truth)[:, 0])[None] if drawn is None else drawn
        scores[method] = task.evaluate(prediction, truth, patients, annotators=drawn)
        setting = {"members": len(prediction.samples)} if len(prediction.samples) > 1 else {}
        setting |= {"nfe": CALLS} if method == MANY else {}
        for metric in METRICS if drawn is not None else ("Dice",):
            values = scores[method][metric]
            run.row(
                dataset=dataset, method=method, metric=METRICS[metric], value=values.mean(), std=values.std(),
                n=len(values), better="higher" if metric == "Dice" else "lower", setting=setting,
            )  # fmt: skip
        gap = task.expected_calibration_error(share.repeat(len(everyone), 1, 1), everyone.flatten(0, 1))
        run.row(dataset=dataset, method=method, metric="ECE", value=gap, n=len(truth), better="lower", setting=setting)
    rng = np.random.default_rng(run.seed)
    for metric in METRICS if drawn is not None else ("Dice",):
        d = scores[MANY][metric] - scores[ONE][metric]
        low, high = np.quantile(rng.choice(d, (2000, len(d))).mean(1), [0.025, 0.975])
        unit = "patients" if metric == "Dice" else "slices"
        run.note(
            f"{dataset}: {metric} of the ensemble minus that of the UNet: {d.mean():+.3f}, 95% interval over {len(d)} "
            f"{unit} [{low:+.3f}, {high:+.3f}]."
        )


def _hippocampus(run: Run, size: Size, volumes: VolumeFolder) -> None:
    from suffuse_medical import segmentation as task
    from suffuse_medical.baselines import UNetSegmentation
    from suffuse_medical.data import LabelSchema, group_split, labelled_volumes

    schema = LabelSchema(["background", "anterior", "posterior"])
    with run.stage("hippocampus: data"):
        names = volumes.names[: size.volumes]
        listed: list[dict[str, Any]] = [{"patient_id": name, "index": i} for i, name in enumerate(names)]
        sides = group_split(listed, {"train": 0.75, "test": 0.25}, seed=run.seed)
        train, test = (
            labelled_volumes(volumes, [item["index"] for item in sides[side]], (40, 40), axis=1, every=2, empty=True)
            for side in ("train", "test")
        )
    options: dict[str, Any] = {"steps": size.steps, "seed": run.seed, "device": run.device}
    with run.stage("hippocampus: train"):
        denoiser = task.fit(
            train.images, train.labels[:, None], schema, out=run.out / "hippocampus", precision="bf16-mixed",
            progress=run.progress, **options,
        ).to(run.device)  # fmt: skip
        unet = UNetSegmentation(3, **options).fit(train.images, schema.one_hot(train.labels[:, None]))
    with run.stage("hippocampus: sample"):
        found = task.predict(denoiser, test.images, schema, n=5, steps=CALLS, seed=run.seed)
        probability = unet.predict(test.images)
        plain = _single(probability, schema)
        predictions = {MANY: (found, 1 - found.mean[:, 0]), ONE: (plain, 1 - probability[:, 0])}
        _score(run, HIPPOCAMPUS, predictions, test.labels[:, None], test.patients, None)


def _figure(test: Tensor, found: SegmentationPrediction, plain: SegmentationPrediction, drawn: Tensor) -> Figure:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = ("image", "annotators", "UNet", "member 1", "member 2", "member 3", "mean", "entropy")
    rows = drawn[1].flatten(1).sum(1).argsort(descending=True)[[0, len(test) // 4, len(test) // 2]].tolist()
    figure, axes = plt.subplots(len(rows), len(titles), figsize=(1.45 * len(titles), 1.7 * len(rows)), squeeze=False)
    for line, i in zip(axes, rows, strict=True):
        pictures = [
            (test[i, 0] + 1) / 3, drawn[:, i].mean(0), plain.mean[i, 1], *found.samples[:3, i, 1], found.mean[i, 1],
            found.entropy[i, 0],
        ]  # fmt: skip
        for axis, picture, title in zip(line, pictures, titles, strict=True):
            colours = "gray" if title == "image" else "magma"
            axis.imshow(picture.T.flip(0).numpy(), cmap=colours, vmin=0, vmax=1)
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.94, wspace=0.03, hspace=0.03)
    return figure
