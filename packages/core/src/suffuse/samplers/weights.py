"""Weights of exponential Adams-Bashforth steps: polynomials through past nodes, integrated against an exponential.

For nodes z_0 = 0 (now) > z_1 > ... (the past) in units of the step, and L_j the Lagrange polynomials through them,

    w_j = integral_0^1 exp(rate (z - 1)) L_j(z) dz.

Gauss-Legendre quadrature is exact to rounding here: the integrand is entire and smooth on the unit interval, and unlike
the recursion of phi-functions it does not cancel when the rate is small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["exponential_weights"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_Z, _W = (_NODES + 1) / 2, _WEIGHTS / 2


def exponential_weights(nodes: Sequence[float], rate: float) -> list[float]:
    """w_j for each node, float64.

    Args:
        nodes: distinct, in units of the step: 0 for the present, negative for the past.
        rate: of the exponential; 0 gives plain Adams-Bashforth weights.
    """
    kernel = _W * np.exp(rate * (_Z - 1))
    result = []
    for j, node in enumerate(nodes):
        others = [n for k, n in enumerate(nodes) if k != j]
        basis = np.prod([(_Z - n) / (node - n) for n in others], axis=0) if others else 1.0
        result.append(float(np.sum(kernel * basis)))
    return result
