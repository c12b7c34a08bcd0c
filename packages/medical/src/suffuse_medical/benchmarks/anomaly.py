"""Does coarse noise find lesions that white noise leaves, as AnoDDPM says?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse_medical.data import PhantomCohort, Slices


class Size(NamedTuple):
    """How large a profile is."""

    patients: int  # healthy ones to train on
    test: int  # with lesions; half as many again to choose levels and thresholds on, half of them healthy
    radii: tuple[float, ...]  # median lesion radius in mm
    steps: int  # of training a network
    factor: int  # by which its grid is coarser than the slices
    networks: tuple[str, ...]  # the noise of each
    rivals: bool  # whether a denoising autoencoder and a counterfactual are trained as well
    pictures: int  # healthy radiographs to train on, at most; 0 for none


SIZES = {
    "quick": Size(
        patients=60, test=24, radii=(8.0, 16.0), steps=200, factor=2, networks=("white", "simplex"),
        rivals=False, pictures=0,
    ),
    "full": Size(
        patients=200, test=24, radii=(8.0, 16.0), steps=800, factor=1, networks=("white", "coarse", "simplex"),
        rivals=True, pictures=1200,
    ),
}  # fmt: skip
CONTRAST = 0.4
LEVELS = (0.1, 0.2, 0.4, 0.8)
STEPS, SAMPLES = 6, 2
XRAY = "PneumoniaMNIST (by image: patients unknown)"


def dataset(radius: float) -> str:
    return f"pseudo-patients (simulated from MNI152), lesions of {radius:g} mm"


@benchmark(
    "medical/anomaly",
    paper="Wyatt et al. 2022, AnoDDPM, CVPR workshops",
    claim="With coarse noise instead of white, partial diffusion on healthy images localises lesions better.",
    peers=("|x - mean|", "intensity", "denoising autoencoder with coarse noise"),
)
def anomaly(run: Run) -> None:
    """T2-weighted slices at 6 mm, lesions at 0.4 of their usual contrast: brighter than tissue, darker than fluid, so
    that brightness does not give them away. None of them is in training.

    The map is the mean squared difference to samples of the healthy slice. AP (average precision over the brain voxels
    of a patient, averaged over patients) is what counts: lesions are about one voxel in a hundred, which is the AP of
    chance. The noise level of every method, and the threshold of its Dice, are chosen on other patients. "Exact" are
    the closed-form denoisers of a Gaussian with the moments of the healthy slices, the same for both noises: there,
    noise is the only difference. Networks start from Gaussians of fewer directions, again alike for all noises. The
    full profile (in bfloat16) trains a counterfactual as well, which is given labels "healthy" and "diseased" of whole
    slices: it sees lesions in training, and compares with nothing else.
    """
    import torch

    from suffuse_medical import anomaly as task
    from suffuse_medical.data import COARSE_GRID, PhantomCohort
    from suffuse_medical.noise import CoarseNoise
    from suffuse_medical.prior import OneLevel, gaussian_prior

    size = SIZES[run.profile]

    def cohort(n: int, seed: int, lesions: tuple[int, int] = (0, 0), radius: float = 12.0) -> Slices:
        return _thinned(
            PhantomCohort(
                n, sequences=("T2w",), sites=("A", "B"), seed=1000 * run.seed + seed, geometry=COARSE_GRID,
                lesions=lesions, lesion_radius=radius, lesion_contrast=CONTRAST,
            ),
            every=1 if seed in (0, 3) else 3,
        )  # fmt: skip

    with run.stage("data"):
        train = cohort(size.patients, 0)
        mean = train.image.mean(0)
        healthy = cohort(max(4, size.test // 4), 2)

    options = _training(run, size)
    methods: dict[str, Callable[[Tensor, float], Tensor]] = {}
    with run.stage("exact priors"):
        for noise, family in (("white", None), ("coarse", CoarseNoise())):
            prior = gaussian_prior(train.image, noise=family).to(run.device)
            methods[f"{noise} noise, exact"] = _partial(prior, noise, run.seed)
    with run.stage("train"):
        for noise in size.networks:
            network = task.fit(train.image, noise=noise, **options).to(run.device)
            methods[f"{noise} noise, network"] = _autocast(run, _partial(network, noise, run.seed))
    if size.rivals:
        with run.stage("train the autoencoder"):
            level = OneLevel(0.4)
            once = task.fit(train.image, noise="coarse", time=level, **options).to(run.device)
            methods["denoising autoencoder, coarse noise"] = _autocast(
                run, lambda x, _: task.predict(once, x, level=level.kappa, steps=1, n=SAMPLES, seed=run.seed).map
            )
        with run.stage("train the counterfactual"):
            sick = cohort(size.patients // 2, 3, (2, 4))
            images = torch.cat([train.image, sick.image])
            assert sick.lesion is not None
            well = torch.cat([torch.ones(len(train), dtype=torch.bool), sick.lesion.flatten(1).sum(1) == 0])
            weak = task.fit_counterfactual(images, well, **options).to(run.device)
            methods["counterfactual (slice labels), network"] = _autocast(
                run, lambda x, level: task.counterfactual(weak, x, level=level, guidance_scale=3.0, steps=8).map
            )
    methods["|x - mean|"] = lambda x, _: (x - mean).square()
    methods["intensity"] = lambda x, _: x

    for radius in size.radii:
        with run.stage(f"maps, {radius:g} mm"):
            test, val = cohort(size.test, 1, (1, 3), radius), cohort(max(4, size.test // 4), 4, (1, 3), radius)
            found = _score(run, dataset(radius), methods, test, val, healthy)
        _claims(run, found, dataset(radius))
        if radius == size.radii[-1]:
            run.figure(
                "maps",
                _figure(test, found),
                "Four slices with lesions: image, lesion, and the anomaly maps of each method, each scaled to its own "
                "99.5th percentile in the brain.",
            )
    run.note("Lesions are simulated spheres in slices of one deformed template; the levels are kappa of the noise.")
    if size.pictures:
        _radiographs(run, size)


def _training(run: Run, size: Size) -> dict[str, Any]:
    return {
        "factor": size.factor, "steps": size.steps, "seed": run.seed, "device": run.device,
        "precision": "32-true" if run.quick else "bf16-mixed", "progress": run.progress,
    }  # fmt: skip


def _thinned(cohort: PhantomCohort, every: int) -> Slices:
    """Every so manyth slice of every pseudo-patient."""
    from suffuse_medical.data import cohort_slices

    slices = cohort_slices(cohort)
    heights = sorted(set(slices.z))[::every]
    return slices[[i for i, z in enumerate(slices.z) if z in heights]]


def _partial(denoiser: Any, noise: str, seed: int) -> Callable[[Tensor, float], Tensor]:
    from suffuse_medical import anomaly as task

    return lambda x, level: (
        task.predict(denoiser, x, noise=noise, level=level, steps=STEPS, n=SAMPLES, seed=seed, batch_size=64).map
    )


def _autocast(run: Run, maps: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """Maps of a network in the precision that it was trained with."""
    import torch

    def of(x: Tensor, level: float) -> Tensor:
        with torch.autocast(torch.device(run.device).type, torch.bfloat16, enabled=not run.quick):
            return maps(x, level)

    return of


def _score(
    run: Run,
    name: str,
    methods: dict[str, Callable[[Tensor, float], Tensor]],
    test: Slices,
    val: Slices,
    healthy: Slices,
) -> dict[str, dict[str, Any]]:
    import torch

    from suffuse_medical import anomaly as task
    from suffuse_medical.data import COARSE_GRID

    assert test.lesion is not None and val.lesion is not None and healthy.lesion is not None
    lesion = val.lesion
    found: dict[str, dict[str, Any]] = {}
    levels: dict[str, float] = {}
    for method, of in methods.items():
        levelled = "noise, " in method or method.startswith("counter")
        maps = {level: of(val.image, level) for level in (LEVELS if levelled else LEVELS[:1])}
        level = max(
            maps, key=lambda k: task.evaluate(maps[k], lesion, val.brain, val.patient)["AP"].mean()
        )  # fmt: skip
        on_healthy = of(healthy.image, level)
        threshold = task.best_threshold(
            torch.cat([maps[level], on_healthy]), torch.cat([val.lesion, healthy.lesion]),
            torch.cat([val.brain, healthy.brain]),
        )  # fmt: skip
        drawn = of(test.image, level)
        scores = task.evaluate(drawn, test.lesion, test.brain, test.patient, threshold)
        false = task.false_positive_volume(
            on_healthy, healthy.brain, threshold, healthy.patient, COARSE_GRID.voxel_volume
        )
        levels |= {method: level} if levelled else {}
        for metric in ("AP", "AUROC", "Dice"):
            values = scores[metric]
            run.row(
                dataset=name, method=method, metric=metric, value=values.mean(), std=values.std(), n=len(values),
                better="higher",
            )  # fmt: skip
        run.row(
            dataset=name, method=method, metric="false positives on healthy", value=false.mean(), std=false.std(),
            n=len(false), better="lower", unit="ml",
        )  # fmt: skip
        found[method] = scores | {"map": drawn}
    run.note(f"{name}: share of lesion in the brain {found['intensity']['prevalence'].mean():.2%}, the AP of chance.")
    run.note(f"{name}: levels chosen on other patients: {', '.join(f'{m} {v:g}' for m, v in levels.items())}.")
    return found


def _claims(run: Run, found: dict[str, dict[str, Any]], name: str) -> None:
    import numpy as np

    rng = np.random.default_rng(run.seed)
    pairs = [("coarse noise, exact", "white noise, exact"), ("coarse noise, network", "white noise, network")]
    pairs += [("simplex noise, network", "white noise, network"), ("simplex noise, network", "|x - mean|")]
    pairs += [("coarse noise, network", "denoising autoencoder, coarse noise")]
    for ours, rival in pairs:
        if ours in found and rival in found:
            d = found[ours]["AP"] - found[rival]["AP"]
            low, high = np.quantile(rng.choice(d, (2000, len(d))).mean(1), [0.025, 0.975])
            run.note(
                f"{name}: AP of {ours} minus that of {rival}: {d.mean():+.3f}, 95% interval over {len(d)} "
                f"pseudo-patients [{low:+.3f}, {high:+.3f}]."
            )


def _radiographs(run: Run, size: Size) -> None:
    """Healthy chest radiographs in, pneumonia to be told from them by the size of the map: AUROC by image."""
    import torch
    import torch.nn.functional as F
    from sklearn.metrics import roc_auc_score

    from suffuse_medical import anomaly as task
    from suffuse_medical.data import MedMNIST

    path = None if run.data is None else run.data / "medical" / "medmnist" / "pneumoniamnist.npz"
    if path is None or not path.is_file():
        run.note("PneumoniaMNIST was left out: SUFFUSE_DATA is not set, or has no medical/medmnist/pneumoniamnist.npz.")
        return

    def images(split: Any, label: int | None, at_most: int) -> tuple[Tensor, Tensor]:
        data = MedMNIST(path, split)
        rows = torch.arange(len(data)) if label is None else (data.labels[:, 0] == label).nonzero().flatten()
        rows = rows[:at_most]
        x = F.pad(2 * data.images[rows].float() / 255 - 1, (2, 2, 2, 2), value=-1.0)
        return x, data.labels[rows, 0]

    with run.stage("radiographs"):
        train, _ = images("train", 0, size.pictures)
        val, val_label = images("val", None, 160)
        test, test_label = images("test", None, 624)
        mean = train.mean(0)

        def auroc(maps: Tensor, label: Tensor) -> float:
            return float(roc_auc_score(label.numpy(), maps.flatten(1).mean(1).numpy()))

        for noise in size.networks:
            network = task.fit(train, noise=noise, **_training(run, size)).to(run.device)
            of = _autocast(run, _partial(network, noise, run.seed))
            level = max(LEVELS, key=lambda k: auroc(of(val, k), val_label))
            value = auroc(of(test, level), test_label)
            run.row(
                dataset=XRAY, method=f"{noise} noise, network", metric="AUROC", value=value, n=len(test),
                better="higher",
            )  # fmt: skip
            run.note(f"{XRAY}: level of {noise} noise chosen on validation images: {level:g}.")
        run.row(
            dataset=XRAY, method="|x - mean|", metric="AUROC", value=auroc((test - mean).square(), test_label),
            n=len(test), better="higher",
        )  # fmt: skip


def _figure(test: Slices, found: dict[str, dict[str, Any]]) -> Figure:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch

    assert test.lesion is not None
    methods = [m for m in found if m != "intensity"]
    order = test.lesion.flatten(1).sum(1).argsort(descending=True)
    rows: list[int] = []
    for i in order.tolist():
        if test.patient[i] not in {test.patient[j] for j in rows}:
            rows.append(i)
        if len(rows) == 4:
            break
    short = {
        m: m.replace(" noise", "").replace("denoising autoencoder, coarse", "DAE").replace(", ", "\n") for m in found
    }
    figure, axes = plt.subplots(
        len(rows), len(methods) + 2, figsize=(1.25 * (len(methods) + 2), 1.5 * len(rows)), squeeze=False
    )
    for line, i in zip(axes, rows, strict=True):
        brain = test.brain[i, 0]
        pictures = [((test.image[i, 0] + 1) / 2, 2.2), (test.lesion[i, 0], 1.0)]
        for method in methods:
            image = found[method]["map"][i, 0] * brain
            pictures.append((image, float(torch.quantile(image[brain], 0.995))))
        for axis, (picture, top), title in zip(line, pictures, ["image", "lesion", *methods], strict=True):
            axis.imshow(picture.T.flip(0).numpy(), cmap="gray" if title == "image" else "magma", vmin=0, vmax=top)
            axis.set_axis_off()
    for axis, title in zip(axes[0], ["image", "lesion", *methods], strict=True):
        axis.set_title(short.get(title, title), fontsize=8)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.9, wspace=0.03, hspace=0.03)
    return figure
