"""Does diffusion from a tissue map draw images that exist, where a regression draws their average?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse_medical.data import Slices


class Size(NamedTuple):
    """How large a profile is."""

    patients: int
    steps: int
    channels: tuple[int, ...]
    samples: int
    calls: int
    slices: int  # of each test set, at most


SIZES = {
    "quick": Size(patients=72, steps=500, channels=(32, 64), samples=8, calls=10, slices=24),
    "full": Size(patients=480, steps=20000, channels=(64, 128, 128), samples=16, calls=20, slices=400),
}
PATIENTS = "pseudo-patients (simulated from MNI152)"
UNSEEN = "pseudo-patients, unseen slab"
TEMPLATE = "MNI152 template, unseen slab"


@benchmark(
    "medical/tissue-to-t1",
    paper="Dorjsembe et al. 2023, Med-DDPM, arXiv:2305.18453",
    claim="Told the tissue map, a diffusion model draws brain slices that are closer in distribution to scans "
    "than a regression from the same map, and the mean of its samples is as accurate.",
    peers=("tissue means", "5x5 patch regression", "UNet regression (full profile)"),
)
def tissue_to_t1(run: Run) -> None:
    """Grey, white and fluid fractions -> T1-weighted slice, for other pseudo-patients than those trained on.

    All methods get the same training slices; the full profile adds a UNet regression with the diffusion model's
    architecture, steps and batches, which a short run could only handicap. Squared error favours regressions by
    construction. The kernel MMD asks whether a set of images could be a set of scans: it compares what images show
    beyond the mean of each tissue. "Another scan" images the same anatomies anew by the simulation, which is what a
    perfect sampler would score. Values are means over pseudo-patients; intensities have white matter at 0.8.

    Two harder sets lie in a slab of the anatomy that no training slice comes within 15 mm of: other pseudo-patients
    there, and the template itself.
    """
    import torch

    from suffuse_medical import tissue_to_t1
    from suffuse_medical.baselines import PatchRegression, UNetRegression
    from suffuse_medical.data import check_leakage, load_slices, to_intensity, write_nifti

    size = SIZES[run.profile]
    with run.stage("data"):
        train, test, unseen = load_slices("phantoms", patients=size.patients, seed=run.seed)
        sets = {PATIENTS: _thinned(test, size.slices, run.seed), UNSEEN: _thinned(unseen, size.slices, run.seed)}
        closest = check_leakage(train.image, unseen.image)
        scans = _scan_again(sets, size, run.seed)
        sets[TEMPLATE] = load_slices("template").unseen

    with run.stage("train"):
        denoiser = tissue_to_t1.fit(
            train,
            steps=size.steps,
            channels=size.channels,
            out=run.out / "model",
            seed=run.seed,
            device=run.device,
            progress=run.progress,
        ).to(run.device)
    with run.stage("train the regressions"):
        means, best = PatchRegression(1).fit(train), PatchRegression(5).fit(train).predict
        regressions = {"tissue means": means.predict, "5x5 patch regression": best}
        if not run.quick:
            torch.manual_seed(run.seed)
            network = tissue_to_t1.regression_network(size.channels).to(run.device)
            best = UNetRegression(network, steps=size.steps, seed=run.seed).fit(train).predict
            regressions["UNet regression"] = best

    drawn: dict[str, Tensor] = {}
    with run.stage("sample"):
        for name, slices in sets.items():
            together = name == TEMPLATE  # whose slices are one volume
            drawn[name] = tissue_to_t1.predict(
                denoiser, slices.tissue, n=size.samples, steps=size.calls, seed=run.seed, together=together
            ).samples

    with run.stage("score"):
        calls = {"nfe": size.calls}
        for name, slices in sets.items():
            images: dict[str, tuple[Tensor, dict[str, Any]]] = {
                method: (to_intensity(predict(slices.tissue))[None], {}) for method, predict in regressions.items()
            }
            images["diffusion, one sample"] = drawn[name], calls
            images["diffusion, mean of samples"] = drawn[name].mean(0)[None], calls | {"samples": size.samples}
            if name in scans:
                images["another scan (reference)"] = scans[name], {}
                images["mean of scans (reference)"] = scans[name].mean(0)[None], {"samples": size.samples}
            _score(run, name, slices, images, to_intensity(means.predict(slices.tissue)))
        for name in scans:
            _calibration(run, name, sets[name], "diffusion", drawn[name], calls)
            _calibration(run, name, sets[name], "another scan (reference)", scans[name], {})

    run.note(f"Unseen slab: its test images and any training image correlate at most {closest:.3f}.")
    run.note("Everything is simulated from one template, whose own unseen slab is 5 slices of one image.")
    rows = [(name, _at(sets[name], z)) for name, z in ((PATIENTS, -20), (PATIENTS, 45), (UNSEEN, 16), (TEMPLATE, 16))]
    run.figure(
        "slices",
        _figure([(sets[name], i, to_intensity(best(sets[name].tissue)), drawn[name]) for name, i in rows]),
        "Tissue map (red grey matter, green white matter, blue fluid), the true slice, the best regression, three "
        "samples, mean and standard deviation of all samples. Two other pseudo-patients, one in the unseen slab, and "
        "the template in the unseen slab.",
    )
    volume = drawn[TEMPLATE][0, :, 0].permute(1, 2, 0)
    run.artifact(
        write_nifti(run.out / "template-slab-sample.nii.gz", volume, _slab_geometry(sets[TEMPLATE])),
        "One sample of the template's unseen slab as NIfTI in MNI space.",
    )


def _thinned(slices: Slices, at_most: int, seed: int) -> Slices:
    """At most so many slices, drawn without replacement, in their order."""
    import torch

    chosen = torch.randperm(len(slices), generator=torch.Generator().manual_seed(seed))[:at_most]
    return slices[sorted(chosen.tolist())]


def _at(slices: Slices, z: float) -> int:
    """The slice nearest to a height in mm."""
    return min(range(len(slices)), key=lambda i: abs(slices.z[i] - z))


def _score(
    run: Run, dataset: str, slices: Slices, images: dict[str, tuple[Tensor, dict[str, Any]]], means: Tensor
) -> None:
    """Rows of fidelity and of MMD, and the paired difference between the sample mean and every regression.

    Args:
        images: method -> (draws (K, N, 1, H, W), setting); scores are averaged over draws.
        means: (N, 1, H, W), the tissue means, beyond which the MMD looks.
    """
    import torch

    from suffuse_medical import metrics
    from suffuse_medical.data import to_intensity

    truth, psnr = to_intensity(slices.image), {}
    for method, (draws, setting) in images.items():
        each = [metrics.fidelity(image, truth, slices.brain) for image in draws]
        for metric, better in metrics.FIDELITY.items():
            values = torch.stack([scores[metric] for scores in each]).mean(0)
            s = metrics.summarise(values, slices.patient)
            run.row(
                dataset=dataset, method=method, metric=metric, value=s.mean, std=s.std, n=s.n, better=better,
                setting=setting, unit="dB" if metric == "PSNR" else "",
            )  # fmt: skip
            if metric == "PSNR":
                psnr[method] = values
        if dataset != TEMPLATE:
            distances = [metrics.rbf_mmd(truth - means, image - means) for image in draws]
            run.row(
                dataset=dataset, method=method, metric="MMD", value=sum(distances) / len(distances), n=len(truth),
                better="lower", setting=setting,
            )  # fmt: skip
    if dataset != TEMPLATE:
        for rival in [method for method in psnr if "regression" in method or method == "tissue means"]:
            difference, low, high = metrics.paired_difference(
                psnr["diffusion, mean of samples"], psnr[rival], slices.patient, seed=run.seed
            )
            run.note(
                f"{dataset}: PSNR of the mean of samples minus that of {rival}: {difference:+.2f} dB, 95% interval "
                f"over pseudo-patients [{low:+.2f}, {high:+.2f}]."
            )


def _scan_again(sets: dict[str, Slices], size: Size, seed: int) -> dict[str, Tensor]:
    """Intensities (K, N, 1, H, W) of the slices with all that the tissue map does not determine drawn anew."""
    import torch

    from suffuse_medical.data import PhantomCohort, axial_slices, to_intensity

    numbers = sorted({int(name.rsplit("-", 1)[1]) for slices in sets.values() for name in slices.patient})
    scans: dict[str, list[Tensor]] = {name: [] for name in sets}
    for repeat in range(1, size.samples + 1):
        cohort = PhantomCohort(size.patients, seed=seed, repeat=repeat)
        scanned = axial_slices(cohort[i] for i in numbers)
        row = {key: i for i, key in enumerate(zip(scanned.patient, scanned.z, strict=True))}
        for name, slices in sets.items():
            chosen = [row[key] for key in zip(slices.patient, slices.z, strict=True)]
            scans[name].append(to_intensity(scanned.image[chosen]))
    return {name: torch.stack(images) for name, images in scans.items()}


def _calibration(run: Run, dataset: str, slices: Slices, method: str, draws: Tensor, setting: dict[str, Any]) -> None:
    from suffuse_medical import metrics
    from suffuse_medical.data import to_intensity

    truth = to_intensity(slices.image)
    covered, nominal = metrics.range_coverage(draws, truth, slices.brain)
    s = metrics.summarise(covered, slices.patient)
    run.row(
        dataset=dataset, method=method, metric="coverage error", value=abs(s.mean - nominal), std=s.std, n=s.n,
        better="lower", setting=setting | {"samples": len(draws)},
    )  # fmt: skip
    penalty, expected = metrics.sample_penalty(draws, truth, slices.brain)
    correlation = metrics.error_spread_correlation(draws, truth, slices.brain)
    run.note(
        f"{dataset}, {method}: the range of {len(draws)} draws covers {s.mean:.1%} of brain voxels (nominal "
        f"{nominal:.1%}); one draw is {penalty:.2f} dB below their mean (nominal {expected:.2f}); rank correlation of "
        f"error and spread {correlation:.2f}."
    )


def _slab_geometry(slices: Slices) -> Any:
    from suffuse_medical.data import WORKING_GRID

    heights = [round(float(WORKING_GRID.world((0, 0, k))[2]), 3) for k in range(WORKING_GRID.shape[2])]
    first = heights.index(round(slices.z[0], 3))
    return WORKING_GRID.slab(first, first + len(slices))


def _figure(rows: list[tuple[Slices, int, Tensor, Tensor]]) -> Figure:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from suffuse_medical.data import to_intensity

    titles = ("tissue map", "truth", "regression", "sample 1", "sample 2", "sample 3", "mean", "std (x 5)")
    figure, axes = plt.subplots(len(rows), len(titles), figsize=(1.45 * len(titles), 1.7 * len(rows)), squeeze=False)
    for line, (slices, i, regression, samples) in zip(axes, rows, strict=True):
        pictures = [
            slices.tissue[i].permute(2, 1, 0).flip(0).clamp(0, 1),  # front of the head up, channels last
            *(
                image[0].T.flip(0)
                for image in (
                    to_intensity(slices.image[i]),
                    regression[i],
                    *samples[:3, i],
                    samples[:, i].mean(0),
                    5 * samples[:, i].std(0),
                )
            ),
        ]
        for axis, picture, title in zip(line, pictures, titles, strict=True):
            colours = "magma" if title.startswith("std") else "gray"
            axis.imshow(picture.numpy(), cmap=colours, vmin=0, vmax=1, interpolation="bilinear")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.94, wspace=0.03, hspace=0.03)
    return figure
