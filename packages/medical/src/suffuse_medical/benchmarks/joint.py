"""One joint model of images and masks: are its conditionals right, and as good as models made for one of them?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark
from suffuse_medical.benchmarks.hippocampus import hippocampus

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse_medical.data import LabelledSlices


class Size(NamedTuple):
    """How large a profile is."""

    draws: int  # of the exact Gaussian
    patients: int
    test: int
    steps: int
    channels: tuple[int, ...]
    segmenter_steps: int
    masks: int  # per image
    images: int  # drawn
    calls: int


SIZES = {
    "quick": Size(10000, 10, 5, 120, (16, 32), 80, 3, 24, 6),
    "full": Size(100000, 48, 24, 1500, (16, 32), 1500, 5, 128, 10),
}
EXACT = "correlated Gaussian, 24 + 12 entries"
DATASET = "pseudo-patients (simulated from MNI152)"
HIPPOCAMPUS = "hippocampus MR, 40 patients (Medical Segmentation Decathlon)"
LEVELS = (0.0, 0.5, 0.6, 0.7, 1.0)


@benchmark(
    "medical/joint",
    paper="Li et al. 2024, UniCon, arXiv:2410.11439",
    claim="One model with a noise level per stream segments, draws from masks and draws both, about as well as models "
    "trained for one of these; with one shared noise level its conditionals fail.",
    peers=("shared noise level", "MONAI UNet segmenter", "mask-conditional diffusion", "exact conditional"),
)
def joint(run: Run) -> None:
    """First the algebra, on a Gaussian whose conditionals are known; then images and masks of pseudo-patients.

    The full profile (in bfloat16) adds the hippocampus of the Medical Segmentation Decathlon, where ``SUFFUSE_DATA``
    has it: 60 patients to train on, 40 others to test. Notes name the data set they are of.

    Errors of conditionals are relative: of the mean to the conditional spread, of the covariance to its norm. Dice is
    per patient over the classes but the first, of the vote of several drawn masks. MMD asks whether
    images drawn from masks could be scans. For the joint direction, a segmenter trained on scans reads the drawn image
    and is compared with the drawn mask.
    """
    from suffuse_medical.data import TISSUE_CLASSES, labelled_phantoms, labelled_volumes

    size = SIZES[run.profile]
    with run.stage("exact"):
        _exact(run, size)
    with run.stage("data"):
        train = labelled_phantoms(size.patients, seed=100 * run.seed)
        test = labelled_phantoms(size.test, seed=100 * run.seed + 7)
    _compare(run, size, DATASET, train, test, TISSUE_CLASSES, "joint")
    if not run.quick and (folder := hippocampus(run)):
        train = labelled_volumes(folder, range(60), (40, 56))
        test = labelled_volumes(folder, range(60, 100), (40, 56), every=4)
        _compare(run, size, HIPPOCAMPUS, train, test, 3, "joint-hippocampus")


def _compare(
    run: Run, size: Size, dataset: str, train: LabelledSlices, test: LabelledSlices, classes: int, figure: str
) -> None:
    """The three questions, on images with label maps."""
    import torch

    from suffuse_medical import metrics, stedm, unicon

    layout, asked = stedm.layout_maps(train.labels, classes), stedm.layout_maps(test.labels, classes)
    settings: dict[str, Any] = {
        "channels": size.channels, "steps": size.steps, "batch_size": 8, "seed": run.seed,
        "device": run.device, "precision": "32-true" if run.quick else "bf16-mixed", "progress": run.progress,
    }  # fmt: skip
    with run.stage("train"):
        models = {
            "joint model": unicon.fit(train.images, layout, **settings).to(run.device),
            "shared noise level": unicon.fit(train.images, layout, shared_time=True, **settings).to(run.device),
        }
        separate = stedm.fit(train.images, layout, train.patients, source="none", **settings).to(run.device)
        segmenter = stedm.fit_segmenter(
            train.images, train.labels, classes, steps=size.segmenter_steps, seed=run.seed, device=run.device
        )

    truth, patients = test.labels, test.patients
    predicted = {"MONAI UNet segmenter": stedm.segment(segmenter, test.images)[None]}
    painted = {"mask-conditional diffusion": stedm.synthesise(separate, asked, steps=size.calls, seed=run.seed)}
    with run.stage("draw"):
        for name, model in models.items():
            predicted[name] = unicon.segment(model, test.images, n=size.masks, steps=size.calls, seed=run.seed)
            painted[name] = unicon.paint(model, asked, steps=size.calls, seed=run.seed)
        images, labels = unicon.draw(
            models["joint model"], size.images, train.images.shape[2:], steps=size.calls, seed=run.seed
        )

    dice = {}
    for name, masks in predicted.items():
        vote = stedm.layout_maps(masks.flatten(0, 1), classes).unflatten(0, masks.shape[:2]).mean(0)
        scores = stedm.patient_scores(vote.argmax(1), truth, patients, classes)
        dice[name] = torch.tensor(scores.dice)
        run.row(
            dataset=dataset, method=name, metric="Dice, image to mask", value=float(scores.dice.mean()),
            std=float(scores.dice.std(ddof=1)), n=len(scores.dice), better="higher",
            setting={"masks": len(masks), "nfe": size.calls} if len(masks) > 1 else {},
        )  # fmt: skip
        if len(masks) > 1:
            wrong = (vote.argmax(1) != truth).float()
            doubt = 1 - vote.amax(1)
            run.note(
                f"{dataset}: {name}: where all {len(masks)} masks agree {float(wrong[doubt == 0].mean()):.1%} of "
                f"voxels are wrong, elsewhere {float(wrong[doubt > 0].mean()):.1%}."
            )
    difference, low, high = metrics.paired_difference(
        dice["joint model"], dice["MONAI UNet segmenter"], sorted(set(patients)), seed=run.seed
    )
    run.note(
        f"{dataset}: Dice of the joint model minus that of the MONAI UNet: {difference:+.3f}, 95% interval over "
        f"patients [{low:+.3f}, {high:+.3f}]."
    )
    for name, drawn in painted.items():
        run.row(
            dataset=dataset, method=name, metric="MMD, mask to image", value=metrics.rbf_mmd(test.images, drawn),
            n=len(drawn), better="lower", setting={"nfe": size.calls},
        )  # fmt: skip
        read = stedm.segment(segmenter, drawn)
        scores = stedm.patient_scores(read, truth, patients, classes)
        run.row(
            dataset=dataset, method=name, metric="Dice of the asked mask, read from the image",
            value=float(scores.dice.mean()), std=float(scores.dice.std(ddof=1)), n=len(scores.dice), better="higher",
            setting={"nfe": size.calls},
        )  # fmt: skip
    agreement = stedm.patient_scores(
        stedm.segment(segmenter, images), labels, [str(k) for k in range(len(labels))], classes
    )
    run.row(
        dataset=dataset, method="joint model", metric="Dice of drawn mask and drawn image",
        value=float(agreement.dice.mean()), std=float(agreement.dice.std(ddof=1)), n=len(labels), better="higher",
        setting={"nfe": size.calls},
    )  # fmt: skip
    curve = {}
    for t in LEVELS:
        drawn = unicon.paint(models["joint model"], asked[: size.images], t=t, steps=size.calls, seed=run.seed)
        read = stedm.segment(segmenter, drawn)
        curve[t] = drawn
        run.row(
            dataset=dataset, method="joint model", metric="Dice of the asked mask, seen through noise",
            value=float(stedm.patient_scores(read, truth[: size.images], patients[: size.images], classes).dice.mean()),
            better="higher", setting={"mask noise t": t, "nfe": size.calls},
        )  # fmt: skip
    run.figure(
        figure,
        _figure(test.images, truth, predicted["joint model"], curve, images, labels),
        "Left: a scan, its labels, two drawn masks. Middle: images drawn for these labels, seen through more and more "
        "noise. Right: an image and a mask drawn together.",
    )


def _exact(run: Run, size: Size) -> None:
    """Conditionals of a Gaussian by sampling its joint denoiser."""
    import torch

    from suffuse.joint import JointGaussian, given
    from suffuse.samplers import Heun
    from suffuse.schedules import VPCosine

    streams = {"image": 24, "mask": 12}
    generator = torch.Generator().manual_seed(run.seed)
    root = torch.randn(36, 36, generator=generator, dtype=torch.float64)
    cov = root @ root.T / 36 + 0.05 * torch.eye(36)
    gaussian = JointGaussian(torch.randn(36, 1, generator=generator), cov, VPCosine(), streams)
    for known in ("mask", "image"):
        y = torch.randn(1, streams[known], 1, generator=generator)
        many = y.expand(size.draws, -1, -1)
        shape = (size.draws, 36 - streams[known], 1)
        x = Heun(steps=20)(given(gaussian, {known: many}), shape=shape, generator=generator).double()[:, :, 0]
        mean, truth = gaussian.conditional({known: y})
        direction = "mask to image" if known == "mask" else "image to mask"
        run.row(
            dataset=EXACT, method="joint denoiser, one stream held",
            metric=f"error of the conditional mean, {direction}",
            value=float((x.mean(0) - mean[0]).norm() / truth.trace().sqrt()), n=size.draws, better="lower",
        )  # fmt: skip
        run.row(
            dataset=EXACT, method="joint denoiser, one stream held",
            metric=f"error of the conditional covariance, {direction}",
            value=float((x.T.cov() - truth).norm() / truth.norm()), n=size.draws, better="lower",
        )  # fmt: skip


def _figure(
    scans: Tensor, truth: Tensor, masks: Tensor, curve: dict[float, Tensor], images: Tensor, labels: Tensor
) -> Figure:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from suffuse_medical.data import to_intensity

    titles = ("scan", "labels", "drawn mask", "another", *(f"image, t={t}" for t in curve), "drawn image", "drawn mask")
    figure, axes = plt.subplots(4, len(titles), figsize=(1.25 * len(titles), 1.45 * 4))
    for k, line in enumerate(axes):
        row = (5 * k) % len(next(iter(curve.values())))
        pictures = [
            to_intensity(scans[row, 0]), truth[row] / 3, masks[0, row] / 3, masks[1, row] / 3,
            *(to_intensity(drawn[row, 0]) for drawn in curve.values()), to_intensity(images[k, 0]), labels[k] / 3,
        ]  # fmt: skip
        for axis, picture, title in zip(line, pictures, titles, strict=True):
            of_labels = title in ("labels", "drawn mask", "another")
            axis.imshow(picture.T.flip(0).numpy(), cmap="viridis" if of_labels else "gray", vmin=0, vmax=1)
            axis.set_axis_off()
            if k == 0:
                axis.set_title(title, fontsize=7)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.94, wspace=0.03, hspace=0.03)
    return figure
