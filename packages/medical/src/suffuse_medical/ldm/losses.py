r"""The loss of stage 1: likelihood, perceptual distance, a penalty on the code, and a patch discriminator.

    r    = |x - x^| + w_p perceptual(x, x^)
    nll  = r / exp(s) + s                                      s a learned scalar
    L    = nll + w_c penalty + w g,    g = -mean d(x^)          d the patch discriminator
    w    = w_a clip( |grad nll| / (|grad g| + 1e-4), 0, 1e4 )   gradients at the decoder's last layer; 0 at first
    L_d  = 1/2 mean relu(1 - d(x)) + 1/2 mean relu(1 + d(x^))   the hinge loss

The adaptive w makes both parties pull equally hard at the last layer whatever their units: without it the adversary
does nothing or everything. Rombach et al. (2022), arXiv:2112.10752, app. G; Esser et al. (2021), "Taming Transformers",
arXiv:2012.09841, eq. 7. (MONAI's hinge squashes d by tanh first and gives the generator a hinge too; this does not.)

Both players are trained by one loss: in the generator's term the discriminator's weights are constants, and in the
discriminator's term the images are. So stage 1 runs on the trainer of every denoiser, with its state and resumption.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable

from .autoencoder import Autoencoder

__all__ = ["AutoencoderObjective", "WithDiscriminator", "perceptual_distance"]


def perceptual_distance(x: Tensor, y: Tensor, name: str = "offline") -> Tensor:
    """How different two batches look, a scalar.

    Args:
        x, y: images (B, C, *spatial).
        name: ``"offline"`` for edges at three scales and the amplitude of the spectrum, which needs no files; or a
            network of MONAI's ``PerceptualLoss`` (``"radimagenet_resnet50"``, ``"alex"``, ...), whose weights are
            downloaded the first time.
    """
    if name != "offline":
        return _network(name, x.ndim - 2, str(x.device))(x.float(), y.float()).mean()
    total, spatial = x.new_zeros(()), tuple(range(2, x.ndim))
    a, b = x, y
    for scale in range(3):
        if scale and min(a.shape[2:]) >= 4:
            pool = F.avg_pool2d if len(spatial) == 2 else F.avg_pool3d
            a, b = pool(a, 2), pool(b, 2)
        edges = [(a.diff(dim=d) - b.diff(dim=d)).abs().mean() for d in spatial]
        total = total + torch.stack(edges).mean() / 3
    amplitude = [torch.fft.fftn(v.float(), dim=spatial, norm="ortho").abs() for v in (x, y)]
    return total + F.mse_loss(*amplitude)


@functools.lru_cache(maxsize=4)
def _network(name: str, spatial_dims: int, device: str) -> nn.Module:
    from monai.losses import PerceptualLoss

    try:
        kwargs: dict[str, Any] = {"is_fake_3d": False, "channel_wise": True} if name.startswith("medicalnet") else {}
        return PerceptualLoss(spatial_dims, name, **kwargs).to(device).eval()
    except Exception as error:  # a missing weight file, package or connection; each raises its own
        raise InvalidArgument(
            f"perceptual={name!r} could not be built ({type(error).__name__}: {error}); use perceptual='offline'"
        ) from error


def layers_for(spatial: Sequence[int], wanted: int) -> int:
    """How many of the wanted layers of a patch discriminator leave something of images of this size.

    Its convolutions have kernels of 4 and borders of 1. The first, and all of its layers but the last, halve the size;
    the last layer and the output take one voxel each.
    """
    smallest = min(spatial)
    for layers in range(wanted, 0, -1):
        if smallest // 2**layers >= 3:
            return layers
    raise InvalidArgument(
        f"images of size {tuple(spatial)} are too small for a discriminator, which needs 6 voxels along every axis; "
        f"train without one, by an objective with adversarial_weight=0"
    )


@serializable
class WithDiscriminator(nn.Module):
    """An autoencoder, its discriminator and the learned scalar s: what stage 1 trains.

    Args:
        autoencoder: to be trained.
        width: channels of the first layer of MONAI's ``PatchDiscriminator``.
        layers: its depth; with images below 64 voxels use 1 or 2.
    """

    steps: Tensor

    def __init__(self, autoencoder: Autoencoder, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        from monai.networks.nets import PatchDiscriminator

        self.autoencoder = autoencoder
        self.discriminator = PatchDiscriminator(
            autoencoder.spatial_dims, width, autoencoder.in_channels, num_layers_d=layers
        )
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def judge(self, x: Tensor, frozen: bool = False) -> Tensor:
        """d(x); with ``frozen`` the discriminator's weights get no gradient, though x does."""
        if not frozen:
            return self.discriminator(x)[-1]
        constants = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        return torch.func.functional_call(self.discriminator, constants, (x,))[-1]


@dataclass(frozen=True)
class AutoencoderObjective:
    """The loss above, for ``suffuse.training.fit``.

    Args:
        perceptual: see :func:`perceptual_distance`; written to the configuration.
        perceptual_weight: w_p.
        penalty_weight: w_c; 1e-6 for KL, 1 for VQ.
        adversarial_weight: w_a; 0.5 for KL, 0.75 for VQ, 0 to train without a discriminator.
        adversarial_start: the step before which w is 0.
    """

    perceptual: str = "offline"
    perceptual_weight: float = 1.0
    penalty_weight: float = 1e-6
    adversarial_weight: float = 0.5
    #: Not in ``repr``, by which runs tell their settings apart: it is set by the length of the run, which may grow.
    adversarial_start: int = field(default=1000, repr=False)

    def __post_init__(self) -> None:
        if min(self.perceptual_weight, self.penalty_weight, self.adversarial_weight, self.adversarial_start) < 0:
            raise InvalidArgument(f"weights and adversarial_start must not be negative, got {self}")

    def __call__(
        self,
        model: WithDiscriminator,
        x: Tensor,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        coded = model.autoencoder.code(x, generator)
        error = (x - coded.reconstruction).abs()
        error = error.mean() if weight is None else (error * weight).mean()
        if self.perceptual_weight:
            error = error + self.perceptual_weight * perceptual_distance(coded.reconstruction, x, self.perceptual)
        nll = error * (-model.log_scale).exp() + model.log_scale
        loss = nll + self.penalty_weight * coded.penalty
        if not self.adversarial_weight or not torch.is_grad_enabled():  # validation has no gradients to balance
            return loss
        started = (model.steps >= self.adversarial_start).to(x.dtype)  # a tensor: no reading back from the device
        model.steps += 1
        fooled = -model.judge(coded.reconstruction, frozen=True).mean()
        real, drawn = model.judge(x), model.judge(coded.reconstruction.detach())
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + drawn).mean())
        return loss + started * (self.adaptive_weight(nll, fooled, model.autoencoder.last_weight) * fooled + hinge)

    def adaptive_weight(self, nll: Tensor, fooled: Tensor, last: nn.Parameter) -> Tensor:
        """w: the ratio of the gradients' norms at the last layer, a constant for the optimiser."""
        pulls = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, fooled)]
        return self.adversarial_weight * (pulls[0] / (pulls[1] + 1e-4)).clamp(0, 1e4).detach()
