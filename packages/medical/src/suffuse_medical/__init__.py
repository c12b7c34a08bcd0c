"""Medical imaging with diffusion models, as MONAI citizens.

    data            NIfTI and DICOM with their geometry, the MNI152 template, pseudo-patients, splits that do not leak
    nets            MONAI's diffusion networks as denoisers
    tissue_to_t1    draw T1-weighted brain slices from a tissue map: the posterior mean, samples and their spread
    reconstruction  images that fit a measurement of one of the ``operators``, from a ``prior``
    anomaly         what a slice would look like if it were healthy, and where it differs; its ``noise``
    segmentation    ensembles of diffused masks
    ldm             latent diffusion: autoencoders, and diffusion in their latents
    stedm           layouts drawn in the style of images that nobody has labelled
    unicon          joint models of images and masks
    bundle          MONAI bundles, with a ``model_card``
    privacy         copies of training images, and membership
    uncertainty     intervals that cover what they promise
    baselines       what a diffusion model has to beat
    metrics         fidelity in the brain, distance between distributions, calibration
    recipes         `suffuse train medical/tissue-to-t1`
    benchmarks      one module per published claim

A published system is one module beside ``tissue_to_t1``, its backbone in ``nets``, its claim in ``benchmarks``.
Nothing here is for clinical use: the bundled anatomy is one averaged template, and pseudo-patients are simulated
from it.
"""

__version__ = "0.1.0"
