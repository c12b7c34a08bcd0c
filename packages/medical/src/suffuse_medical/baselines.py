"""What a diffusion model has to beat: regressions from the tissue map to the image, and reconstructions without one.

Regressions estimate E[image | tissue]. That estimate has the smallest squared error there is, and it is no image:
what the tissue map does not determine (site, bias field, noise) is averaged out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.errors import InvalidArgument
from suffuse.hub import serializable

from .data.slices import Slices
from .data.template import TISSUES
from .nets import SMALL, direct_unet
from .operators import Operator
from .training import train_directly


@serializable
class PatchRegression(nn.Module):
    """Ridge regression from the tissue fractions in a neighbourhood of each voxel to its value: one convolution.

    ``size=1`` is a level for each tissue, mixed by fraction: the classical tissue model. Larger neighbourhoods learn
    partial volume and blur. Fitted in closed form, in seconds.

    Args:
        size: edge of the neighbourhood in voxels, odd.
        ridge: penalty, relative to the mean squared input.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, size: int = 1, ridge: float = 1e-4) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise InvalidArgument(f"size must be odd and positive, got {size}")
        self.size, self.ridge = size, ridge
        self.register_buffer("weight", torch.zeros(1, len(TISSUES), size, size))
        self.register_buffer("bias", torch.zeros(1))

    def fit(self, slices: Slices) -> Self:
        """Solve (X'X + lambda I) w = X'y over all voxels; the normal equations add up, so memory is one batch's."""
        inputs = len(TISSUES) * self.size**2 + 1
        gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        moment = torch.zeros(inputs, 1, dtype=torch.float64)
        for image, tissue in zip(slices.image.split(32), slices.tissue.split(32), strict=True):
            patches = F.unfold(tissue, self.size, padding=self.size // 2).transpose(1, 2).flatten(0, 1).double()
            x = F.pad(patches, (0, 1), value=1.0)
            gram += x.T @ x
            moment += x.T @ image.flatten()[:, None].double()
        penalty = self.ridge * gram.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
        solution = torch.linalg.solve(gram + penalty, moment)[:, 0].float()
        self.weight.copy_(solution[:-1].view_as(self.weight))
        self.bias.copy_(solution[-1:])
        return self

    def forward(self, tissue: Tensor) -> Tensor:
        """(N, 3, H, W) fractions -> (N, 1, H, W) in network units."""
        return F.conv2d(tissue, self.weight, self.bias, padding=self.size // 2)

    def predict(self, tissue: Tensor) -> Tensor:
        return self(tissue)


class UNetRegression:
    """The diffusion model's own UNet, trained on the squared error of one prediction instead of denoising.

    Same architecture, optimiser, steps and batch size: the difference that is left is diffusion.
    """

    def __init__(self, network: nn.Module, *, steps: int, batch_size: int = 8, lr: float = 3e-3, seed: int = 0) -> None:
        self.network, self.steps, self.batch_size, self.lr, self.seed = network, steps, batch_size, lr, seed

    def fit(self, slices: Slices) -> Self:
        generator = torch.Generator().manual_seed(self.seed)

        def batch() -> tuple[Tensor, Tensor]:
            rows = torch.randint(len(slices), (self.batch_size,), generator=generator)
            return slices.tissue[rows], slices.image[rows]

        train_directly(self.network, batch, F.mse_loss, self.steps, self.lr)
        return self

    @torch.no_grad()
    def predict(self, tissue: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        return torch.cat([self.network(part.to(device)).cpu() for part in tissue.split(64)])


# --- reconstruction ---------------------------------------------------------------------------------------------


def total_variation(
    operator: Operator, y: Tensor, weight: float = 0.01, *, iterations: int = 150, smooth: float = 1e-2
) -> Tensor:
    """Images (N, C, H, W) with the least |A x - y|^2 / 2 + weight * TV(x), by Nesterov's gradient descent.

    TV is smoothed, sum sqrt(|grad x|^2 + smooth^2), which has a gradient that is Lipschitz. The classical prior of
    compressed sensing: Lustig, Donoho, Pauly (2007), "Sparse MRI", MRM 58(6).

    Args:
        weight: of the prior; choose it on validation images.
    """
    if weight < 0:
        raise InvalidArgument(f"weight must not be negative, got {weight}")
    x = momentum = operator.pseudo_inverse(y)
    probe = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(0)).to(x)
    for _ in range(20):  # the largest eigenvalue of A^T A
        probe = operator.adjoint(operator(probe))
        norm = probe.norm()
        probe = probe / norm
    step = 1 / (norm + 8 * weight / smooth)
    previous = 1.0
    for _ in range(iterations):
        down, right = (F.pad(momentum.diff(dim=d), pad) for d, pad in ((-2, (0, 0, 0, 1)), (-1, (0, 1))))
        length = (down**2 + right**2 + smooth**2).sqrt()
        p, q = down / length, right / length
        slope = -(p - F.pad(p, (0, 0, 1, 0))[..., :-1, :]) - (q - F.pad(q, (1, 0))[..., :-1])
        new = momentum - step * (operator.adjoint(operator(momentum) - y) + weight * slope)
        following = (1 + (1 + 4 * previous**2) ** 0.5) / 2
        momentum = new + (previous - 1) / following * (new - x)
        x, previous = new, following
    return x


def gaussian_posterior(
    mean: Tensor, cov: Tensor, operator: Operator, y: Tensor, noise_std: float
) -> tuple[Tensor, Tensor]:
    """Exact: the posterior mean (N, C, H, W) and covariance (d, d) of x ~ N(mean, cov) given y = A x + s z.

    Dense linear algebra, for images of about 1000 voxels.

    Args:
        mean: (C, H, W). cov: (d, d).
    """
    d = mean.numel()
    basis = torch.eye(d, dtype=torch.float64).view(d, *mean.shape)
    a = operator(basis).flatten(1).T  # (m, d)
    seen = a.abs().amax(1) > 0  # frequencies that were not sampled say nothing
    a, cov = a[seen], cov.double()
    gram = a @ cov @ a.T + noise_std**2 * torch.eye(len(a), dtype=torch.float64)
    # real images measure some frequencies twice, so a noise-free gram matrix may be singular
    gain = cov @ a.T @ torch.linalg.pinv(gram, hermitian=True)
    residual = y.double().flatten(1)[:, seen] - a @ mean.double().flatten()
    posterior = mean.double().flatten() + residual @ gain.T
    return posterior.view(len(y), *mean.shape), cov - gain @ a @ cov


# --- segmentation -----------------------------------------------------------------------------------------------


class UNetSegmentation:
    """The diffusion model's own UNet, trained to name the class of every voxel (cross-entropy) in one call.

    Args:
        classes: C.
        channels, factor: of the UNet, as of the diffusion model.
    """

    def __init__(
        self,
        classes: int,
        in_channels: int = 1,
        channels: Sequence[int] = SMALL,
        factor: int = 2,
        *,
        steps: int,
        batch_size: int = 8,
        lr: float = 3e-3,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(seed)
        self.network = direct_unet(in_channels, classes, channels, factor).to(device)
        self.steps, self.batch_size, self.lr, self.seed = steps, batch_size, lr, seed

    def fit(self, images: Tensor, target: Tensor) -> Self:
        """On images (N, C, H, W) and one-hot targets (N, classes, H, W)."""
        generator = torch.Generator().manual_seed(self.seed)

        def batch() -> tuple[Tensor, Tensor]:
            rows = torch.randint(len(images), (self.batch_size,), generator=generator)
            return images[rows], target[rows]

        train_directly(self.network, batch, F.cross_entropy, self.steps, self.lr)
        return self

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The probability of each class, (N, classes, H, W)."""
        device = next(self.network.parameters()).device
        return torch.cat([self.network(part.to(device)).softmax(1).cpu() for part in images.split(64)])
