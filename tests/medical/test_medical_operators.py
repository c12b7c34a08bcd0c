"""Operators: adjoints, pseudo-inverses, and what they measure."""

import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_medical.operators import (
    Downsample,
    Inpaint,
    MaskedFourier,
    Operator,
    Radon,
    coil_sensitivities,
    kspace_mask,
)

N = 16
MASK = kspace_mask((N, N), 3.0, 0.2, generator=torch.Generator().manual_seed(0))
COILS = coil_sensitivities((N, N), 4)
SHAPE = (2, 1, N, N)
OPERATORS = {
    "fourier": (MaskedFourier(MASK), SHAPE),
    "fourier, complex": (MaskedFourier(MASK, is_complex=True), (2, 2, N, N)),
    "coils": (MaskedFourier(MASK, COILS), SHAPE),
    "coils, complex": (MaskedFourier(MASK, COILS, is_complex=True), (2, 2, N, N)),
    "inpaint": (Inpaint((torch.rand(N, N, generator=torch.Generator().manual_seed(1)) > 0.4).float()), SHAPE),
    "downsample": (Downsample(2), SHAPE),
    "thick slices": (Downsample((1, 4)), SHAPE),
    "downsample 3-D": (Downsample((1, 2, 4)), (2, 1, 4, 4, 8)),
    "radon": (Radon(torch.linspace(0, 180, 9)[:-1]), SHAPE),
}


@pytest.fixture(params=sorted(OPERATORS))
def case(request):
    operator, shape = OPERATORS[request.param]
    return operator, torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_adjoint(case):
    operator, x = case
    y = operator(x)
    other = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close((operator(x) * other).sum(), (x * operator.adjoint(other)).sum())


def test_operators_are_linear_and_keep_rows_apart(case):
    operator, x = case
    torch.testing.assert_close(operator(2 * x[:1] - x[1:]), 2 * operator(x[:1]) - operator(x[1:]))
    torch.testing.assert_close(operator(x)[1:], operator(x[1:]))


def test_pseudo_inverse(case):
    """A A^+ A = A, and A^+ A is symmetric: the definition of Moore and Penrose."""
    operator, x = case
    formula = type(operator).pseudo_inverse is not Operator.pseudo_inverse and getattr(operator, "coils", None) is None
    tolerance = 1e-5 if formula else 2e-3  # conjugate gradients take long over what is hardly seen
    once = operator.pseudo_inverse(operator(x), iterations=300)
    torch.testing.assert_close(operator(once), operator(x), atol=tolerance, rtol=tolerance)
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    again = operator.pseudo_inverse(operator(other), iterations=300)
    torch.testing.assert_close((once * other).sum(), (x * again).sum(), atol=5 * tolerance, rtol=5 * tolerance)
    assert float(operator.residual(once, operator(x)).max()) < tolerance


def test_replacing_measured_frequencies_is_no_projection_for_real_images_but_the_pseudo_inverse_is():
    """The trap: with an asymmetric mask, the real part of a replaced k-space does not fit the data."""
    operator, x = MaskedFourier(MASK), OPERATORS["fourier"][1]
    truth, start = torch.randn(2, *x, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = operator(truth)
    assert not torch.equal(MASK, torch.roll(MASK.flip(-2, -1), (1, 1), (-2, -1)))
    naive = start - operator.adjoint(operator(start) - y)
    assert float(operator.residual(naive, y).max()) > 0.01
    right = start - operator.pseudo_inverse(operator(start) - y)
    assert float(operator.residual(right, y).max()) < 1e-10


def test_full_sampling_and_coils_see_the_image():
    full = torch.ones(N, N)
    x = torch.randn(SHAPE, dtype=torch.float64)
    torch.testing.assert_close(MaskedFourier(full).adjoint(MaskedFourier(full)(x)), x)
    coils = MaskedFourier(full, COILS.to(torch.complex128))
    torch.testing.assert_close(coils.adjoint(coils(x)), x, atol=1e-5, rtol=1e-5)  # sum of squares is one


def test_mask_samples_the_centre_and_every_fourth_line():
    masks = [kspace_mask((64, 64), 4.0, 0.08, generator=torch.Generator().manual_seed(k)) for k in range(20)]
    assert all(bool(m[:, :2].all()) for m in masks)  # lowest frequencies
    assert all(bool((m == m[:1]).all()) for m in masks)  # whole lines
    share = torch.stack(masks).mean()
    assert abs(float(share) - 0.25) < 0.03


def test_radon_of_a_disc_is_the_same_from_everywhere():
    n = 33
    grid = torch.arange(n) - n // 2
    disc = ((grid[:, None] ** 2 + grid[None] ** 2).sqrt() < 10).float()[None, None]
    sinogram = Radon(torch.tensor([0.0, 30.0, 90.0]))(disc)
    torch.testing.assert_close(sinogram[0, 0], sinogram[0, 2], atol=0.3, rtol=0.05)
    torch.testing.assert_close(sinogram.sum(-1), disc.sum().expand(1, 3), atol=2, rtol=0.02)


def test_bad_arguments():
    with pytest.raises(InvalidArgument, match="mask"):
        MaskedFourier(torch.zeros(N, N))
    with pytest.raises(InvalidArgument, match="coils"):
        MaskedFourier(MASK, COILS[:, :4])
    with pytest.raises(InvalidArgument, match="x must be"):
        MaskedFourier(MASK, is_complex=True)(torch.zeros(SHAPE))
    with pytest.raises(InvalidArgument, match="multiple"):
        Downsample(3)(torch.zeros(SHAPE))
    with pytest.raises(InvalidArgument, match="square"):
        Radon(torch.zeros(1))(torch.zeros(1, 1, 4, 6))
    with pytest.raises(InvalidArgument, match="acceleration"):
        kspace_mask((8, 8), 4.0, 0.5)
