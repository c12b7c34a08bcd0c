"""Medical imaging with diffusion models, as MONAI citizens.

    data            NIfTI in and out with its geometry, the MNI152 template, pseudo-patients, splits that do not leak
    tissue_to_t1    draw T1-weighted brain slices from a tissue map: the posterior mean, samples and their spread
    baselines       what a diffusion model has to beat
    metrics         fidelity in the brain, distance between distributions, calibration
    recipes         `suffuse train medical/tissue-to-t1`
    benchmarks      one module per published claim

A published system is one module beside ``tissue_to_t1``, its backbone in ``nets``, its claim in ``benchmarks``.
Nothing here is for clinical use: the bundled anatomy is one averaged template, and pseudo-patients are simulated
from it.
"""

__version__ = "0.1.0"
