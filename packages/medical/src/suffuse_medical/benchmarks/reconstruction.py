"""Does a prior of images, never told of the scanner, reconstruct undersampled k-space, and does it know how well?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse import Denoiser
    from suffuse_medical.data import Slices
    from suffuse_medical.operators import MaskedFourier
    from suffuse_medical.prediction import Prediction


class Size(NamedTuple):
    """How large a profile is."""

    patients: int  # whose images the prior is made of
    test: int  # patients reconstructed, a slice each
    val: int  # patients to scale intervals on; their guarantee costs 1 in (val + 1) of the misses allowed
    samples: int
    accelerations: tuple[int, ...]
    steps: int  # of training; 0 for no network
    network_samples: int
    calls: dict[str, int]  # steps of each method


SIZES = {
    "quick": Size(
        patients=40, test=10, val=40, samples=20, accelerations=(4,), steps=0, network_samples=0,
        calls={"posterior": 15, "dds": 30, "score-mri": 50},
    ),
    "full": Size(
        patients=120, test=24, val=40, samples=40, accelerations=(4, 8), steps=3000, network_samples=10,
        calls={"posterior": 20, "dds": 30, "score-mri": 150},
    ),
}  # fmt: skip
NOISE = 0.02
RIDGE = 5e-3  # variance beyond the sample covariance, relative to a voxel's: about that of the scanner's noise
LEVEL = 0.9
FIELD, PATIENTS = "Gaussian fields (exact)", "pseudo-patients (simulated from MNI152)"


@benchmark(
    "medical/reconstruction",
    paper="Chung, Ye 2022, score-MRI, arXiv:2110.05243; Chung, Lee, Ye 2024, DDS, arXiv:2303.05754",
    claim="Samples of the posterior under a prior trained on images alone reconstruct undersampled k-space better than "
    "zero filling and total variation, with intervals that cover what they promise, and DDS needs a fraction of the "
    "network calls of score-MRI.",
    peers=("zero-filled", "total variation", "exact Gaussian posterior"),
)
def reconstruction(run: Run) -> None:
    """T1-weighted slices at 6 mm, k-space lines left out at random (fastMRI's masks), noise of 0.02 in every entry.

    On Gaussian fields with the covariance of the slices everything has an exact answer: the posterior mean, and draws
    from the posterior, are the ceiling and the reference. On pseudo-patients the same Gaussian is only a prior, and a
    network (full profile) is another; the truth is neither. PSNR and SSIM are of the mean of the samples, over the
    brain, and averaged over patients. The coverage error is the distance, in percentage points, between how often the
    90% interval of the samples holds the truth and how often it should. "Calibrated" intervals are scaled on other
    patients.
    """
    import torch

    from suffuse_medical import reconstruction as task
    from suffuse_medical.baselines import gaussian_posterior, total_variation
    from suffuse_medical.data import COARSE_GRID, PhantomCohort, cohort_slices
    from suffuse_medical.operators import MaskedFourier, kspace_mask
    from suffuse_medical.prediction import Prediction
    from suffuse_medical.prior import gaussian_prior, moments
    from suffuse_medical.uncertainty import calibrate

    size = SIZES[run.profile]
    generator = torch.Generator().manual_seed(run.seed)

    def cohort(n: int, seed: int) -> Slices:
        return cohort_slices(PhantomCohort(n, sites=("A", "B"), seed=1000 * run.seed + seed, geometry=COARSE_GRID))

    with run.stage("data"):
        train = cohort(size.patients, 0)
        test, val = (_one_slice(cohort(n, seed)) for n, seed in ((size.test, 1), (size.val, 2)))
        prior = gaussian_prior(train.image, ridge=RIDGE).to(run.device)
        mean, cov = moments(train.image.double(), RIDGE)
        root = torch.linalg.cholesky(cov)
        z = torch.randn(len(test), len(cov), generator=generator, dtype=torch.float64)
        fields = (mean + (z @ root.T).view(len(test), *mean.shape)).float()

    if size.steps:
        with run.stage("train"):
            network = task.fit(
                train.image, steps=size.steps, factor=1, seed=run.seed, device=run.device, precision="bf16-mixed",
                progress=run.progress, out=run.out / "model",
            ).to(run.device)  # fmt: skip

    shape = COARSE_GRID.shape[0], COARSE_GRID.shape[1]
    for acceleration in size.accelerations:
        operator = MaskedFourier(kspace_mask(shape, acceleration, 0.32 / acceleration, generator=generator))

        def measure(image: Tensor, operator: MaskedFourier = operator) -> Tensor:
            y = operator(image)
            return y + NOISE * operator.mask * torch.randn(y.shape, generator=generator)

        def predict(
            denoiser: Denoiser, y: Tensor, method: Any, n: int, operator: MaskedFourier = operator
        ) -> Prediction:
            found = task.predict(
                denoiser, operator, y.to(run.device), method=method, noise_std=NOISE, n=n, seed=run.seed,
                steps=size.calls[method], iterations=8 if method == "posterior" else None, batch_size=512,
            )  # fmt: skip
            return Prediction(found.samples.cpu())

        with run.stage("exact"):
            y, held = measure(fields), measure(val.image)
            tv = min(  # the weight of total variation that is best on other patients
                (0.001, 0.002, 0.005, 0.01, 0.02),
                key=lambda w: float((total_variation(operator, held, w) - val.image).square().mean()),
            )
            exact, covariance = gaussian_posterior(mean, cov, operator, y, NOISE)
            spread = torch.linalg.cholesky(covariance + 1e-8 * torch.eye(len(cov)))
            draws = torch.randn(size.samples, len(y), len(cov), generator=generator, dtype=torch.float64) @ spread.T
            ideal = Prediction(exact.float() + draws.view(size.samples, *fields.shape).float())
            answers = {
                "exact posterior mean (ceiling)": Prediction(exact[None].float()),
                "exact posterior samples (reference)": ideal,
                "zero-filled": Prediction(operator.pseudo_inverse(y)[None]),
                "total variation": Prediction(total_variation(operator, y, tv)[None]),
            }
            for method in task.METHODS:
                answers[f"{method}, Gaussian prior"] = predict(prior, y, method, size.samples)
            scores = _score(run, FIELD, answers, fields, test, operator, y, acceleration, size.calls)
            gap = scores["exact posterior mean (ceiling)"]["PSNR"] - scores["posterior, Gaussian prior"]["PSNR"]
            run.note(
                f"Gaussian fields, x{acceleration}: the mean of {size.samples} samples is {gap.mean():.2f} dB below "
                f"the exact posterior mean (0.7 dB allowed); one sample is "
                f"{_penalty(answers['posterior, Gaussian prior'], fields, test):.2f} dB below the mean of all."
            )

        with run.stage("pseudo-patients"):
            y = measure(test.image)
            answers = {
                "zero-filled": Prediction(operator.pseudo_inverse(y)[None]),
                "total variation": Prediction(total_variation(operator, y, tv)[None]),
                "Gaussian posterior mean": Prediction(
                    gaussian_posterior(mean, cov, operator, y, NOISE)[0][None].float()
                ),
            }
            for method in ("posterior", "dds"):
                answers[f"{method}, Gaussian prior"] = predict(prior, y, method, size.samples)
            if size.steps:
                for method in task.METHODS:
                    answers[f"{method}, network prior"] = predict(network, y, method, size.network_samples)
            scores = _score(run, PATIENTS, answers, test.image, test, operator, y, acceleration, size.calls)
            _claims(run, scores, acceleration)
            ours = "dds, Gaussian prior" if not size.steps else "dds, network prior"
            fitted = calibrate(
                predict(network if size.steps else prior, held, "dds", len(answers[ours].samples)),
                val.image, val.brain, val.patient, LEVEL,
            )  # fmt: skip
            covered = fitted.coverage(answers[ours], test.image, test.brain, test.patient)
            run.row(
                dataset=PATIENTS, method=f"{ours}, calibrated", metric="coverage error", better="lower",
                value=100 * abs(covered.mean() - LEVEL), std=100 * covered.std(), n=len(covered), unit="%",
                setting={"acceleration": acceleration},
            )  # fmt: skip
            if acceleration == size.accelerations[0]:
                run.figure(
                    "reconstructions",
                    _figure(test, answers, answers[ours], fitted.width(answers[ours])),
                    f"Two pseudo-patients at x{acceleration}: truth, zero-filled, total variation, mean of samples and "
                    f"two samples by {ours}, absolute error of the mean, and the half width of the "
                    "calibrated 90% interval, both on one scale.",
                )
    run.note("Everything is simulated from one template; the k-space is that of magnitude images with one coil.")


def _one_slice(slices: Slices) -> Slices:
    """Of every patient a slice, low and high in turn: patients are what differences are averaged over."""
    chosen = []
    for k, name in enumerate(sorted(set(slices.patient))):
        own = [i for i, p in enumerate(slices.patient) if p == name]
        chosen.append(min(own, key=lambda i: abs(slices.z[i] - (-6.0, 12.0, 30.0)[k % 3])))
    return slices[chosen]


def _intensity(prediction: Prediction) -> Prediction:
    from suffuse_medical.data import to_intensity
    from suffuse_medical.prediction import Prediction

    return Prediction(to_intensity(prediction.samples))


def _score(
    run: Run,
    dataset: str,
    answers: Mapping[str, Prediction],
    truth: Tensor,
    slices: Slices,
    operator: MaskedFourier,
    y: Tensor,
    acceleration: int,
    calls: Mapping[str, int],
) -> dict[str, dict[str, Any]]:
    import torch

    from suffuse_medical import reconstruction as task
    from suffuse_medical.data import to_intensity

    found = {}
    for method, answer in answers.items():
        scores = task.evaluate(_intensity(answer), to_intensity(truth), slices.brain, slices.patient, level=LEVEL)
        residual = torch.stack([operator.residual(x, y) for x in answer.samples]).mean()
        found[method] = scores
        kind = method.partition(",")[0]
        setting: dict[str, Any] = {"acceleration": acceleration}
        if kind in calls:
            setting["nfe"] = 2 * calls[kind] - 1 if kind == "score-mri" else calls[kind]
        for metric, unit in (("PSNR", "dB"), ("SSIM", "")):
            values = scores[metric]
            run.row(
                dataset=dataset, method=method, metric=metric, value=values.mean(), std=values.std(), n=len(values),
                better="higher", unit=unit, setting=setting,
            )  # fmt: skip
        run.row(
            dataset=dataset, method=method, metric="data residual", value=float(residual), better="lower",
            n=len(truth), setting=setting,
        )  # fmt: skip
        if "coverage" in scores:
            values = scores["coverage"]
            run.row(
                dataset=dataset, method=method, metric="coverage error", better="lower", unit="%", n=len(values),
                value=100 * abs(values.mean() - answer.nominal(LEVEL)), std=100 * values.std(), setting=setting,
            )  # fmt: skip
    return found


def _penalty(prediction: Prediction, truth: Tensor, slices: Slices) -> float:
    from suffuse_medical import metrics

    return metrics.sample_penalty(prediction.samples, truth, slices.brain)[0]


def _claims(run: Run, scores: dict[str, dict[str, Any]], acceleration: int) -> None:
    """Paired differences over patients with their bootstrap intervals."""
    import numpy as np

    rng = np.random.default_rng(run.seed)
    for ours in [m for m in scores if "prior" in m]:
        for rival in ("zero-filled", "total variation"):
            d = scores[ours]["PSNR"] - scores[rival]["PSNR"]
            low, high = np.quantile(rng.choice(d, (2000, len(d))).mean(1), [0.025, 0.975])
            run.note(
                f"x{acceleration}: PSNR of {ours} minus that of {rival}: {d.mean():+.2f} dB, 95% interval over "
                f"{len(d)} pseudo-patients [{low:+.2f}, {high:+.2f}]."
            )


def _figure(slices: Slices, answers: Mapping[str, Prediction], ours: Prediction, width: Tensor) -> Figure:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from suffuse_medical.data import to_intensity

    titles = ("truth", "zero-filled", "TV", "mean", "sample 1", "sample 2", "|error|", "interval")
    figure, axes = plt.subplots(2, len(titles), figsize=(1.45 * len(titles), 3.4), squeeze=False)
    for line, i in zip(axes, (0, 2), strict=True):
        pictures = [
            to_intensity(x[i, 0])
            for x in (
                slices.image, answers["zero-filled"].mean, answers["total variation"].mean, ours.mean, *ours.samples[:2]
            )
        ]  # fmt: skip
        pictures += [(ours.mean - slices.image)[i, 0].abs() / 2, width[i, 0] / 2]
        for axis, picture, title in zip(line, pictures, titles, strict=True):
            spread = title in ("|error|", "interval")
            axis.imshow(
                picture.T.flip(0).numpy(), cmap="magma" if spread else "gray", vmin=0, vmax=0.3 if spread else 1.1
            )
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.92, wspace=0.03, hspace=0.03)
    return figure
