"""Does an ensemble of diffused masks spread as annotators do, where a UNet draws one mask?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from torch import Tensor

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
    "full": Size(patients=160, test=32, steps=3000, members=16, volumes=260),
}
CALLS = 10
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
    and ECE is the calibration of the probability that annotators call a voxel lesion. The full profile adds the
    hippocampus of the Medical Segmentation Decathlon, where ``SUFFUSE_DATA`` has it: anterior and posterior, one
    annotator, patients split at random.
    """
    import torch

    from suffuse_medical import segmentation as task
    from suffuse_medical.baselines import UNetSegmentation
    from suffuse_medical.data import LabelSchema, PhantomCohort, cohort_slices

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
    with run.stage("train"):
        denoiser = task.fit(images, masks, schema, progress=run.progress, out=run.out / "model", **options)
        denoiser = denoiser.to(run.device)
    with run.stage("train the UNet"):
        unet = UNetSegmentation(2, **options).fit(images, schema.one_hot(masks))

    with run.stage("lesions"):
        found = task.predict(denoiser, test, schema, n=size.members, steps=CALLS, seed=run.seed)
        plain = _single(unet.predict(test), schema)
        drawn = annotators(truth)[:, :, 0]
        _score(run, LESIONS, found, plain, unet.predict(test), truth, patients, drawn)
        run.figure(
            "masks",
            _figure(test, found, plain, drawn),
            "Lesion slices: image, the three annotators' masks added up, the UNet's mask, three members of the "
            "ensemble, their mean, and the entropy in bits.",
        )
    run.note("Lesions are simulated spheres; the annotators differ by one voxel, by construction.")
    if size.volumes:
        if run.data is None or not (run.data / "medical" / "Task04_Hippocampus").is_dir():
            run.note("The hippocampus was left out: SUFFUSE_DATA is not set, or has no medical/Task04_Hippocampus.")
        else:
            _hippocampus(run, size, run.data / "medical" / "Task04_Hippocampus")


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
    found: SegmentationPrediction,
    plain: SegmentationPrediction,
    probability: Tensor,
    truth: Tensor,
    patients: tuple[str, ...],
    drawn: Tensor | None,
) -> None:
    import numpy as np

    from suffuse_medical import segmentation as task

    scores = {}
    many, one = "diffused masks, ensemble", "UNet"
    for method, prediction in ((many, found), (one, plain)):
        scores[method] = task.evaluate(prediction, truth, patients, annotators=drawn)
        setting = {"nfe": CALLS, "members": len(found.samples)} if method == many else {}
        values = scores[method]["Dice"]
        run.row(
            dataset=dataset, method=method, metric="Dice", value=values.mean(), std=values.std(), n=len(values),
            better="higher", setting=setting,
        )  # fmt: skip
        if drawn is not None:
            values = scores[method]["GED2"]
            run.row(
                dataset=dataset, method=method, metric="GED^2", value=values.mean(), std=values.std(), n=len(values),
                better="lower", setting=setting,
            )  # fmt: skip
        share = 1 - (prediction.mean if method == many else probability)[:, 0]
        schema = prediction.schema
        assert schema is not None
        everyone = (1 - schema.one_hot(truth)[:, 0])[None] if drawn is None else drawn
        gap = np.mean([task.expected_calibration_error(share, mask) for mask in everyone]) if len(everyone) == 1 else (
            task.expected_calibration_error(share.repeat(len(everyone), 1, 1), everyone.flatten(0, 1))
        )  # fmt: skip
        run.row(
            dataset=dataset, method=method, metric="ECE", value=float(gap), n=len(truth), better="lower",
            setting=setting,
        )  # fmt: skip
    rng = np.random.default_rng(run.seed)
    for metric in ("Dice", "GED2") if drawn is not None else ("Dice",):
        d = scores[many][metric] - scores[one][metric]
        low, high = np.quantile(rng.choice(d, (2000, len(d))).mean(1), [0.025, 0.975])
        unit = "patients" if metric == "Dice" else "slices"
        run.note(
            f"{dataset}: {metric} of the ensemble minus that of the UNet: {d.mean():+.3f}, 95% interval over {len(d)} "
            f"{unit} [{low:+.3f}, {high:+.3f}]."
        )


def _hippocampus(run: Run, size: Size, folder: Path) -> None:

    from suffuse_medical import segmentation as task
    from suffuse_medical.baselines import UNetSegmentation
    from suffuse_medical.data import LabelSchema, VolumeFolder, group_split, labelled_volumes

    schema = LabelSchema(["background", "anterior", "posterior"])
    with run.stage("hippocampus: data"):
        volumes = VolumeFolder(folder / "imagesTr", folder / "labelsTr")
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
            train.images, train.labels[:, None], schema, progress=run.progress, out=run.out / "hippocampus", **options
        )
        denoiser = denoiser.to(run.device)
        unet = UNetSegmentation(3, **options).fit(train.images, schema.one_hot(train.labels[:, None]))
    with run.stage("hippocampus: sample"):
        found = task.predict(denoiser, test.images, schema, n=5, steps=CALLS, seed=run.seed)
        probability = unet.predict(test.images)
        truth = test.labels[:, None]
        _score(run, HIPPOCAMPUS, found, _single(probability, schema), probability, truth, test.patients, None)


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
