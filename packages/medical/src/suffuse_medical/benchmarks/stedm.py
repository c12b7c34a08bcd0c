"""Do images drawn in the style of an unlabelled site teach a segmenter that site?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse_medical.data import LabelledSlices


class Size(NamedTuple):
    """How large a profile is."""

    labelled: int  # pseudo-patients with labels, each of a protocol of its own
    unlabelled: int  # of the unseen site, for its style
    test: int  # of the unseen site, for scores
    steps: int  # of the generators
    segmenter_steps: int
    drawn: int  # images per generator
    calls: int
    seeds: int  # segmenters per arm
    sites: tuple[str, ...]


SIX = ((1800, 55), (1200, 35), (2600, 75), (900, 50), (2200, 30), (1500, 80))
#: (TR, TE) in ms and scanners of unseen sites. Scanners differ in gain, contrast curve, resolution, ringing and noise.
UNSEEN = {
    "one protocol": (((1800, 55),), ("C",)),
    "six protocols": (SIX, ("C",)),
    "six protocols on five scanners": (SIX, ("A", "B", "C", "D", "E")),  # A made the labelled images
}
SIZES = {
    "quick": Size(8, 4, 8, 80, 60, 64, 6, 1, ("one protocol",)),
    "full": Size(12, 30, 60, 2400, 300, 384, 8, 2, tuple(UNSEEN)),
}


@benchmark(
    "medical/stedm",
    paper="Öttl et al. 2024, STEDM, arXiv:2403.14429",
    claim="A segmenter trained with images drawn in the style of an unlabelled site is better there than one trained "
    "on real data alone or with images drawn without a style, and varies less from patient to patient.",
    peers=("real data only", "layout-only diffusion", "Fourier style transfer"),
)
def stedm(run: Run) -> None:
    """Labelled pseudo-patients of eight protocols; sites with other protocols and other scanners, unlabelled.

    One site scans everybody alike, one scans each pseudo-patient with one of six protocols, and one on one of five
    scanners as well, so that styles differ from patient to patient as stains do in the paper, and some are nearer to
    the labelled images than others.

    Every pseudo-patient is scaled by the percentiles of its voxels, as MR volumes are, so that a receiver's gain is not
    what sites differ in.

    Every arm trains the same segmenter with the same number of steps, and all but the first get as many drawn images
    as the others, made of the same layouts. The style-extracting model has never seen the unseen site: it is shown
    four images of a pseudo-patient there and asked for a known layout. Fourier style transfer (FDA) swaps low
    frequencies instead. Dice and IoU are per pseudo-patient over grey matter, white matter and fluid, and averaged over
    seeds of the segmenter; the spread is over pseudo-patients. "Labels at the site" is trained with what the others
    lack.
    """
    from suffuse_medical import stedm
    from suffuse_medical.data import PROTOCOLS, TISSUE_CLASSES, labelled_phantoms, scaled

    size = SIZES[run.profile]
    with run.stage("data"):
        train = scaled(labelled_phantoms(size.labelled, PROTOCOLS, ("A",), 100 * run.seed))
    images, labels, patients = train
    layout = stedm.layout_maps(labels, TISSUE_CLASSES)

    models: dict[str, Any] = {}
    with run.stage("train"):
        arms: dict[str, dict[str, Any]] = {"STEDM": {}, "layout-only diffusion": {"source": "none"}}
        if not run.quick:
            arms["STEDM, style in the middle"] = {"style_blocks": "middle"}
            arms["STEDM, nearby styles"] = {"source": "nearby"}
        for name, choice in arms.items():
            models[name] = stedm.fit(
                images, layout, patients, channels=(16, 32), steps=size.steps, batch_size=8, seed=run.seed,
                device=run.device, precision="32-true" if run.quick else "bf16-mixed", progress=run.progress, **choice,
            ).to(run.device)  # fmt: skip

    for site in size.sites:
        _compare(run, size, site, train, layout, models)
    told = stedm.leak(models["STEDM"].backbone.style.cpu(), images, layout, patients)
    for name, value in (("own image", told["own"]), ("other images of the patient", told["others"])):
        run.row(
            dataset="labelled pseudo-patients", method=f"style vector of {name}", metric="layout explained (R2)",
            value=value, better="lower", n=len(set(patients)),
        )  # fmt: skip
    run.note(
        "Layout explained: R2 of a ridge regression from the style vector to where each class lies, for "
        "pseudo-patients left out; 0 or less is chance. The model is shown other images of the patient."
    )


def _compare(run: Run, size: Size, name: str, train: LabelledSlices, layout: Tensor, models: dict[str, Any]) -> None:
    """All arms at one site."""
    import torch

    from suffuse_medical import metrics, stedm
    from suffuse_medical.data import check_leakage, labelled_phantoms, scaled

    images, labels, _ = train
    dataset = f"pseudo-patients, unseen site with {name} (simulated from MNI152)"
    with run.stage(f"{name}: data"):
        site = scaled(labelled_phantoms(size.unlabelled, *UNSEEN[name], 100 * run.seed + 31))
        test = scaled(labelled_phantoms(size.test, *UNSEEN[name], 100 * run.seed + 67))
        closest = check_leakage(train[0], test[0], threshold=1.0)

    generator = torch.Generator().manual_seed(run.seed)
    rows = torch.randint(len(images), (size.drawn,), generator=generator)
    styles = stedm.style_sets(site.images, size.drawn, 4, run.seed, site.patients)
    pairs: dict[str, tuple[Tensor, Tensor] | None] = {"real data only": None}
    with run.stage(f"{name}: draw"):
        for arm, model in models.items():
            style = None if arm.startswith("layout") else styles
            pairs[arm] = (stedm.synthesise(model, layout[rows], style, steps=size.calls, seed=run.seed), labels[rows])
        pairs["Fourier style transfer"] = (fourier_style(images[rows], styles[:, 0]), labels[rows])

    scores: dict[str, Any] = {}
    with run.stage(f"{name}: segment"):
        for arm, drawn in pairs.items():
            scores[arm] = segmenters(train[:2], drawn, test, size)
        scores["labels at the site (ceiling)"] = segmenters(site[:2], None, test, size)
    for arm, each in scores.items():
        for metric in ("Dice", "IoU"):
            values = each[metric]
            run.row(
                dataset=dataset, method=arm, metric=f"{metric} of patients", value=float(values.mean()),
                std=float(values.std(ddof=1)), n=len(values), better="higher",
            )  # fmt: skip
            run.row(
                dataset=dataset, method=arm, metric=f"spread of {metric} over patients",
                value=float(values.std(ddof=1)), n=len(values), better="lower",
            )  # fmt: skip
    for rival in ("real data only", "layout-only diffusion", "Fourier style transfer"):
        difference, low, high = metrics.paired_difference(
            torch.tensor(scores["STEDM"]["IoU"]), torch.tensor(scores[rival]["IoU"]), scores[rival]["patients"],
            seed=run.seed,
        )  # fmt: skip
        spread, narrow, wide = _spreads(scores["STEDM"]["IoU"], scores[rival]["IoU"], run.seed)
        n = len(scores[rival]["patients"])
        run.row(dataset=dataset, method=rival, metric="IoU of STEDM minus this", value=difference, n=n, better="higher")
        run.row(dataset=dataset, method=rival, metric="spread of STEDM minus this", value=spread, n=n, better="lower")
        run.note(
            f"{name}: IoU of STEDM minus that of {rival}: {difference:+.3f}, 95% interval over pseudo-patients "
            f"[{low:+.3f}, {high:+.3f}]."
        )
        run.note(
            f"{name}: spread of IoU with STEDM minus that with {rival}: {spread:+.3f}, 95% interval over "
            f"pseudo-patients [{narrow:+.3f}, {wide:+.3f}]."
        )
    run.note(f"{name}: a test image and a labelled image correlate at most {closest:.3f}: all come from one template.")
    if name == size.sites[0]:
        run.figure(
            "styles",
            _figure(images[rows], labels[rows], styles, {k: p[0] for k, p in pairs.items() if p is not None}),
            "Label map, the labelled image it belongs to, one of four style images of the unseen site, and what each "
            "method makes of them.",
        )


def _spreads(ours: Any, theirs: Any, seed: int) -> tuple[float, float, float]:
    """The difference of standard deviations over the same patients, and its 95% interval by bootstrap."""
    import numpy as np

    rows = np.random.default_rng(seed).integers(len(ours), size=(2000, len(ours)))
    difference = ours[rows].std(1, ddof=1) - theirs[rows].std(1, ddof=1)
    low, high = np.quantile(difference, [0.025, 0.975])
    return float(ours.std(ddof=1) - theirs.std(ddof=1)), float(low), float(high)


def fourier_style(images: Tensor, styles: Tensor, beta: float = 0.1) -> Tensor:
    """FDA: the amplitude of low frequencies from the style. Yang, Soatto (2020), arXiv:2004.05498."""
    import torch

    content, style = torch.fft.fft2(images), torch.fft.fft2(styles)
    frequency = [torch.fft.fftfreq(n).abs() <= beta / 2 for n in images.shape[2:]]
    low = frequency[0][:, None] & frequency[1][None, :]
    amplitude = torch.where(low, style.abs(), content.abs())
    return torch.fft.ifft2(torch.polar(amplitude, content.angle())).real


def segmenters(
    real: tuple[Tensor, Tensor],
    drawn: tuple[Tensor, Tensor] | None,
    test: tuple[Tensor, Tensor, tuple[str, ...]],
    size: Size,
) -> dict[str, Any]:
    """Patient scores, averaged over seeds of the segmenter."""
    import numpy as np

    from suffuse_medical import stedm
    from suffuse_medical.data import TISSUE_CLASSES

    found = []
    for seed in range(size.seeds):
        net = stedm.fit_segmenter(*real, TISSUE_CLASSES, drawn=drawn, steps=size.segmenter_steps, seed=seed)
        found.append(stedm.patient_scores(stedm.segment(net, test[0]), test[1], test[2], TISSUE_CLASSES))
    return {
        "Dice": np.mean([s.dice for s in found], axis=0),
        "IoU": np.mean([s.iou for s in found], axis=0),
        "patients": found[0].patients,
    }


def _figure(images: Tensor, labels: Tensor, styles: Tensor, drawn: dict[str, Tensor]) -> Figure:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from suffuse_medical.data import to_intensity

    titles = ("labels", "labelled image", "style, 1 of 4", *drawn)
    figure, axes = plt.subplots(5, len(titles), figsize=(1.5 * len(titles), 1.7 * 5))
    for k, line in enumerate(axes):
        pictures = [labels[k] / 3, images[k, 0], styles[k, 0, 0], *(d[k, 0] for d in drawn.values())]
        for axis, picture, title in zip(line, pictures, titles, strict=True):
            shown = picture if title == "labels" else to_intensity(picture)
            axis.imshow(shown.T.flip(0).numpy(), cmap="viridis" if title == "labels" else "gray", vmin=0, vmax=1.3)
            axis.set_axis_off()
            if k == 0:
                axis.set_title(title, fontsize=8)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.95, wspace=0.03, hspace=0.03)
    return figure
