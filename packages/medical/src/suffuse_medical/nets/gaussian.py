r"""Gaussians of images, with directions: what a network need not learn, see :mod:`.residual`.

Images have mean m and covariance U diag(lambda) U^T + diag(psi): principal components, and what they leave in each
voxel. That is factor analysis, for which some hundred images suffice. Of x_t = alpha x + sigma n, n with covariance
diag(K), and y = x_t - alpha m, with N = alpha^2 psi + sigma^2 K, all entry by entry,

    M = diag(lambda)^-1 + U^T (alpha^2 / N) U,      z = M^-1 U^T (alpha / N) y
    G = m + (alpha psi / N) y + (sigma^2 K / N) U z                                     posterior mean
    b^2 = sigma^2 K psi / N + diag(R M^-1 R^T),      R = (sigma^2 K / N) U              posterior variance

:class:`GaussianPart` has K = 1, white noise, and psi of voxels. This holds as well where channels have noise levels of
their own, as the streams of a joint model do.

Under noise with another spectrum K, psi has to be a spectrum too, and the entries are those of the Fourier transform
(:class:`ColouredGaussianPart`). For images, unlike noise, are not the same in all frequencies: coarse noise leaves fine
detail as it is, and what detail says of the rest is in the directions, of which this needs more than white noise does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from suffuse.errors import InvalidArgument
from suffuse.hub import serializable

__all__ = ["ColouredGaussianPart", "GaussianPart", "gaussian_part"]


@serializable
class GaussianPart(nn.Module):
    """The Gaussian, for white noise; N(0, 1) until it is fitted.

    Args:
        shape: of m, (C, *spatial), or (C, 1, ...) for a mean and a variance of each channel, at any size.
        rank: columns of U.
    """

    least = 0.01  # of the mean variance: what was black may yet be grey
    mean: Tensor
    psi: Tensor
    basis: Tensor
    variances: Tensor

    def __init__(self, shape: Sequence[int], rank: int = 0) -> None:
        super().__init__()
        self.rank = rank
        self.register_buffer("mean", torch.zeros(tuple(shape)))
        self.register_buffer("psi", torch.ones(tuple(shape)))
        self.register_buffer("basis", torch.zeros(self.mean.numel(), rank))
        self.register_buffer("variances", torch.ones(rank))

    def fit(self, images: Tensor) -> Self:
        """To images (N, C, *spatial), in place."""
        over = [0, *(k for k, size in enumerate(self.mean.shape[1:], 2) if size == 1)]
        self.mean.copy_(images.mean(over, keepdim=True)[0])
        rest = images - self.mean
        if not bool(rest.any()):
            raise InvalidArgument("images are all the same; a model of them has nothing to learn")
        if self.rank:
            # of channels scaled alike: what is measured in one unit and what in another count the same
            scale = rest.square().mean((0, *range(2, rest.ndim)), keepdim=True).sqrt().clamp(min=1e-8)
            flat = (rest / scale).flatten(1)
            _, singular, basis = torch.pca_lowrank(flat, min(self.rank + 8, *flat.shape), center=False, niter=4)
            basis = basis[:, : self.rank]
            self.basis.copy_((scale * basis.T.unflatten(1, self.mean.shape)).flatten(1).T)
            self.variances.copy_(singular[: self.rank].square() / len(flat))
            rest = rest - scale * (flat @ basis @ basis.T).view_as(rest)
        left = self._power(rest).mean(over, keepdim=True)[0] * len(images) / max(len(images) - self.rank, 1)
        self.psi.copy_(left.clamp(min=max(self.least * float(left.mean()), 1e-8)))
        return self

    @property
    def std(self) -> float:
        """Root mean variance of an entry around m."""
        return float(self.variance.mean()) ** 0.5

    @property
    def variance(self) -> Tensor:
        """Of every voxel, like m."""
        return self._diagonal(self.psi) + (self.basis.square() @ self.variances).view_as(self.psi)

    def deviation(self, x: Tensor, alpha: Any) -> Tensor:
        """y of x_t (B, C, *spatial). Raises InvalidArgument for images of another size."""
        if any(size not in (1, given) for size, given in zip(self.mean.shape, x.shape[1:], strict=True)):
            raise InvalidArgument(
                f"x is {tuple(x.shape[1:])}, but this model starts from a Gaussian of {tuple(self.mean.shape)}; draw "
                f"that size, or train with rank=None"
            )
        return x - alpha * self.mean

    def posterior(self, y: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """G; alpha and sigma are numbers, (B, 1, ...) or (B, C, 1, ...)."""
        with torch.autocast(y.device.type, enabled=False):  # transforms and factorisations want their digits
            y = y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
            noisy = alpha**2 * self.psi + sigma**2 * self._noise
            mean = self.mean + self._multiply(alpha * self.psi / noisy, y)
            if self.rank:
                projected = self._multiply(alpha / noisy, y).flatten(1) @ self.basis
                z = torch.cholesky_solve(projected[..., None], self._root(alpha, noisy))[..., 0]
                mean = mean + self._multiply(sigma**2 * self._noise / noisy, (z @ self.basis.T).view_as(y))
        return mean

    def spread(self, alpha: Any, sigma: Any) -> Tensor:
        """b, (C, *spatial) with an axis for the batch in front."""
        with torch.autocast(self.psi.device.type, enabled=False):
            noisy = (alpha**2 * self.psi + sigma**2 * self._noise).reshape(-1, *self.psi.shape)
            hidden = sigma**2 * self._noise / noisy
            variance = self._diagonal(hidden * self.psi)
            if self.rank:
                moved = self._multiply(hidden[:, None], self._directions).flatten(2)  # R^T
                factor = torch.linalg.solve_triangular(self._root(alpha, noisy), moved, upper=False)
                variance = variance + factor.square().sum(1).view_as(noisy)
        return variance.sqrt()

    def _root(self, alpha: Any, noisy: Tensor) -> Tensor:
        """The Cholesky factor of M, for every noise level, (1 or B, r, r)."""
        weight = (alpha**2 / noisy).reshape(-1, 1, *self.psi.shape)
        inner = self._multiply(weight, self._directions).flatten(2) @ self.basis
        return torch.linalg.cholesky((1 / self.variances).diag() + inner)

    @property
    def _directions(self) -> Tensor:
        """U^T, (1, r, C, *spatial)."""
        return self.basis.T.unflatten(1, self.psi.shape)[None]

    # in which basis psi and K are diagonal

    @property
    def _noise(self) -> Tensor | float:
        """K."""
        return 1.0

    def _power(self, x: Tensor) -> Tensor:
        """Squared entries of x."""
        return x.square()

    def _multiply(self, gain: Tensor, x: Tensor) -> Tensor:
        """diag(gain) x."""
        return gain * x

    def _diagonal(self, gain: Tensor) -> Tensor:
        """Of the matrix diag(gain), voxel by voxel."""
        return gain


@serializable
class ColouredGaussianPart(GaussianPart):
    """The Gaussian, for noise that is stationary: psi and K are spectra, over the frequencies of the FFT.

    Args:
        shape: of m, (C, *spatial).
        rank: columns of U.
    """

    least = 1e-3
    spectrum: Tensor

    def __init__(self, shape: Sequence[int], rank: int = 0) -> None:
        super().__init__(shape, rank)
        self.axes = tuple(range(1 - len(self.psi.shape), 0))
        self.register_buffer("spectrum", torch.ones(tuple(shape)[1:]))

    @property
    def _noise(self) -> Tensor:
        return self.spectrum

    def _power(self, x: Tensor) -> Tensor:
        return torch.fft.fftn(x, dim=self.axes, norm="ortho").abs().square()

    def _multiply(self, gain: Tensor, x: Tensor) -> Tensor:
        return torch.fft.ifftn(gain * torch.fft.fftn(x, dim=self.axes), dim=self.axes).real

    def _diagonal(self, gain: Tensor) -> Tensor:
        return gain.mean(self.axes, keepdim=True).expand_as(gain)


def gaussian_part(images: Tensor, rank: int | None, spectrum: Tensor | None = None) -> GaussianPart:
    """The Gaussian that a model of images (N, C, *spatial) starts from.

    Args:
        rank: columns of U, at most an eighth of the number of images; 0 is a mean and a variance in each voxel, None
            in each channel, for images with nothing in common from place to place and for models that are to draw
            other sizes.
        spectrum: K of the noise, (*spatial), where it is not white; it has a size, so not without a rank.
    """
    if rank is not None and rank < 0:
        raise InvalidArgument(f"rank must not be negative, got {rank}; 0 is a mean without directions")
    if not bool(torch.isfinite(images).all()):
        raise InvalidArgument("images have NaN or infinite voxels; mask or fill them first")
    if rank is None:
        return GaussianPart((images.shape[1], *(1,) * (images.ndim - 2))).fit(images)
    rank = min(rank, len(images) // 8, images[0].numel() // 2)
    if spectrum is None:
        return GaussianPart(images.shape[1:], rank).fit(images)
    coloured = ColouredGaussianPart(images.shape[1:], rank)
    coloured.spectrum.copy_(spectrum)
    return coloured.fit(images)
