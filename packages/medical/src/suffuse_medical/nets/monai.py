r"""MONAI's diffusion networks as denoisers, in whatever way they were trained.

A network of MONAI sees x_t and a timestep, and its output F means, by MONAI's schedulers,

    epsilon         D = (x - sigma F) / alpha          DDPM, DDIM, PNDM
    v_prediction    D = alpha x - sigma F
    sample          D = F
    rectified flow  D = x + tau F,  x = (1 - tau) x_0 + tau eps

The last sign is MONAI's own: the target of ``RFlowScheduler`` is x_0 - eps, where the rest of the field (and
``flow_prediction`` here) has eps - x_0. Index k - 1 of a scheduler's ``alphas_cumprod`` is t = k / T; between two
indices the log-SNR is interpolated, so that any sampler may step anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from suffuse import Condition, NetworkDenoiser
from suffuse.errors import InvalidArgument, unknown
from suffuse.hub import serializable
from suffuse.nets.unets import check_size
from suffuse.schedules import DiscreteBetas, Level, RectifiedFlow, Scalar, Schedule

__all__ = ["MonaiDenoiser", "MonaiNetwork", "schedule_of"]

#: Conditions with a place of their own in MONAI's networks.
CLASS, SEGMENTATION, CONTROL = "class", "seg", "control"


def schedule_of(scheduler: Any) -> Schedule:
    """The noise schedule of a MONAI scheduler, rebuilt in float64.

    Args:
        scheduler: ``DDPMScheduler``, ``DDIMScheduler``, ``PNDMScheduler`` or ``RFlowScheduler``. Its stored
            ``alphas_cumprod`` is not read: ``add_noise`` on half-precision data turns it into half precision for good.
    """
    betas = getattr(scheduler, "betas", None)
    if betas is not None:
        return DiscreteBetas(tuple(np.asarray(betas.detach().cpu(), dtype=np.float64).tolist()))
    if hasattr(scheduler, "use_timestep_transform"):
        if scheduler.use_timestep_transform:
            raise InvalidArgument(
                "use_timestep_transform depends on the image size; pass RectifiedFlow(shift) as the schedule yourself, "
                "shift = (voxels / base_img_size_numel) ** (1 / spatial_dim)"
            )
        return RectifiedFlow()
    raise InvalidArgument(f"scheduler must be one of MONAI's (DDPM, DDIM, PNDM, RFlow), got {type(scheduler).__name__}")


@serializable
class MonaiNetwork(nn.Module):
    """A network of ``monai.networks.nets`` that checkpoints can rebuild; called as the network itself is.

    Args:
        kind: the class: ``"DiffusionModelUNet"``, ``"SPADEDiffusionModelUNet"`` or ``"ControlNet"``.
        kwargs: arguments of that class.
    """

    KINDS = ("DiffusionModelUNet", "SPADEDiffusionModelUNet", "ControlNet")

    def __init__(self, kind: str, **kwargs: Any) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise unknown("kind of network", kind, self.KINDS)
        from monai.networks import nets

        groups = kwargs.get("norm_num_groups", 32)
        if bad := [c for c in kwargs.get("channels", ()) if c % groups]:
            raise InvalidArgument(f"channels {bad} are not multiples of norm_num_groups={groups}; change one of them")
        self.network = getattr(nets, kind)(**kwargs)
        self.cross_attention_dim = kwargs.get("cross_attention_dim")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)


@serializable
class MonaiDenoiser(NetworkDenoiser):
    """A MONAI diffusion network as a denoiser, to be trained, guided and sampled like any other.

    Args:
        network: called as ``network(x, timesteps=..., context=..., class_labels=..., seg=...)``: MONAI's
            ``DiffusionModelUNet`` or ``SPADEDiffusionModelUNet``, or a :class:`MonaiNetwork`, which can be saved.
        schedule: of the training; :meth:`from_scheduler` reads it from a MONAI scheduler.
        prediction_type: ``"epsilon"``, ``"v_prediction"``, ``"sample"``, or ``"rflow"``, which is MONAI's x_0 - eps.
        train_timesteps: T; a time t becomes the timestep t T - 1 (rectified flow: tau T), fractional.
        controlnet: MONAI's ``ControlNet``, whose residuals are added.
        control_scale: of these residuals.

    Conditions: the map ``"seg"`` (one-hot, image size) goes to SPADE, the map ``"control"`` to the ControlNet, other
    maps are stacked onto x; the token ``"class"`` (B, 1, C), one-hot, gives the class label, other tokens lie side by
    side in the cross-attention context. What is masked is zero, or the condition's null value: for a model trained with
    MONAI's ``cfg_fill_value``, give that as the null. No class is the entry behind the C classes, for which a network
    needs ``num_class_embeds`` = C + 1; without, train with ``DenoisingObjective(cond_dropout=0)``.

    A condition that the network has no place for, and one that it needs and does not get, is an InvalidArgument.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: str = "epsilon",
        train_timesteps: int = 1000,
        controlnet: nn.Module | None = None,
        control_scale: float = 1.0,
    ) -> None:
        rflow = prediction_type == "rflow"
        if rflow and not isinstance(schedule, RectifiedFlow):
            raise InvalidArgument(f"prediction_type='rflow' needs a RectifiedFlow schedule, got {schedule}")
        if train_timesteps < 1:
            raise InvalidArgument(f"train_timesteps must be positive, got {train_timesteps}")
        super().__init__(network, schedule, "flow_prediction" if rflow else prediction_type)
        self.rflow, self.train_timesteps = rflow, train_timesteps
        self.controlnet, self.control_scale = controlnet, control_scale

    @classmethod
    def from_scheduler(cls, network: nn.Module, scheduler: Any, **kwargs: Any) -> MonaiDenoiser:
        """A denoiser from a network and the MONAI scheduler that it was trained with.

        A variance learned in extra channels is not supported; ``clip_sample`` is not taken over.
        """
        schedule = schedule_of(scheduler)
        flow = isinstance(schedule, RectifiedFlow)
        kind = "rflow" if flow else str(getattr(scheduler, "prediction_type", "epsilon"))
        return cls(network, schedule, kind, train_timesteps=int(scheduler.num_train_timesteps), **kwargs)

    def coefficients(self, level: Level) -> tuple[Any, Any]:
        if self.rflow:
            return 1.0, level.sigma  # D = x + tau (x_0 - eps)
        return super().coefficients(level)

    def input_scale(self, level: Level) -> Any:
        return 1.0  # MONAI's networks see x as it is

    def timestep(self, t: Scalar, x: Tensor) -> Tensor:
        """The network's timestep (B,) of our time."""
        time = torch.as_tensor(t, dtype=torch.float64)
        if isinstance(self.schedule, RectifiedFlow):
            step = self.train_timesteps * self.schedule.sigma(time)
        else:
            step = (self.train_timesteps * time - 1).clamp(min=0)
        return step.to(x.device, torch.float32).expand(len(x))

    def _mean_and_rest(self, x: Tensor, t: Scalar, cond: Condition | None) -> tuple[Tensor, Tensor]:
        if cond is not None and len(cond) not in (0, len(x)):
            raise InvalidArgument(f"cond has batch size {len(cond)} but x has {len(x)}; use cond.repeat or index it")
        skip, out = self.coefficients(self.schedule.level(t, like=x))
        output = self._output(x, self.timestep(t, x), cond)
        if output.shape != x.shape:
            raise InvalidArgument(f"the network returned {tuple(output.shape)} for an input of {tuple(x.shape)}")
        return skip * x + out * output.to(x.dtype), x[:, :0]

    def _output(self, x: Tensor, timesteps: Tensor, cond: Condition | None) -> Tensor:
        values = {} if cond is None else _given(cond, x)
        given = {name: values.pop(name, None) for name in (SEGMENTATION, CONTROL, CLASS)}
        tokens = {name: values.pop(name) for name in list(values) if cond is not None and name in cond.tokens}
        self._check(x, given, tokens, values)
        options: dict[str, Any] = {}
        label, control = given[CLASS], given[CONTROL]
        if label is not None:
            assert cond is not None
            options["class_labels"] = self._labels(label, cond.masks[CLASS].to(x.device))
        if tokens:
            options["context"] = torch.cat(list(tokens.values()), dim=1)
        stacked = torch.cat([x, *values.values()], dim=1)
        residuals: dict[str, Any] = {}
        if self.controlnet is not None:
            down, mid = self.controlnet(
                x=stacked,
                timesteps=timesteps,
                controlnet_cond=control,
                conditioning_scale=self.control_scale,
                **options,
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        if given[SEGMENTATION] is not None:
            options["seg"] = given[SEGMENTATION]
        return self.backbone(stacked, timesteps=timesteps, **options, **residuals)

    def _labels(self, label: Tensor, given: Tensor) -> Tensor:
        """Class labels (B,) of one-hot tokens (B, 1, C); rows without a class get the entry behind the last."""
        classes, entries = label.shape[2], self._fact("num_class_embeds")
        if entries is not None and classes < entries:
            return torch.where(given[:, 0], label[:, 0].argmax(-1), classes)
        if not bool(given.all()):
            raise InvalidArgument(
                f"the token 'class' is masked, and MONAI's class embedding of {entries} entries has none for no class; "
                f"build the network with num_class_embeds={classes + 1}, or train with cond_dropout=0"
            )
        return label[:, 0].argmax(-1)

    def _fact(self, name: str) -> Any:
        """An attribute of MONAI's network; None for a network that does not have it."""
        return getattr(getattr(self.backbone, "network", self.backbone), name, None)

    def _check(
        self, x: Tensor, given: Mapping[str, Tensor | None], tokens: Mapping[str, Tensor], maps: Mapping[str, Tensor]
    ) -> None:
        """Raise InvalidArgument for what MONAI's network would stumble over, or silently put up with."""
        seg, label = given[SEGMENTATION], given[CLASS]
        if (given[CONTROL] is None) != (self.controlnet is None):
            raise InvalidArgument("the condition map 'control' and a controlnet belong together; give both or neither")
        if self._fact("down_blocks") is None:
            return  # not one of MONAI's
        check_size(x.shape[2:], 2 ** (len(self._fact("down_blocks")) - 1))
        classes, labels, channels = (self._fact(name) for name in ("num_class_embeds", "label_nc", "in_channels"))
        needs = {CLASS: classes is not None, SEGMENTATION: labels is not None}
        needs["tokens to attend to"] = self._fact("with_conditioning")
        has = {CLASS: label is not None, SEGMENTATION: seg is not None, "tokens to attend to": bool(tokens)}
        if missing := [name for name in needs if needs[name] and not has[name]]:
            raise InvalidArgument(f"cond lacks {missing}, which the network was built with")
        if stray := [name for name in needs if has[name] and not needs[name]]:
            raise InvalidArgument(f"cond gives {stray}, which the network was not built for; it has {[*tokens, *maps]}")
        width = x.shape[1] + sum(value.shape[1] for value in maps.values())
        if width != channels or any(value.shape[2:] != x.shape[2:] for value in maps.values()):
            shapes = {name: tuple(value.shape) for name, value in maps.items()}
            raise InvalidArgument(
                f"x {tuple(x.shape)} and the maps {shapes} do not make up the in_channels={channels} of the network"
            )
        if label is not None and label.shape[2] > classes:
            raise InvalidArgument(f"the token 'class' has {label.shape[2]} classes, the network {classes}")
        if seg is not None:
            finer = {n / m for n, m in zip(seg.shape[2:], x.shape[2:], strict=True)}  # of latents it may be finer
            if seg.shape[1] != labels or len(finer) > 1 or finer.pop() % 1:
                raise InvalidArgument(
                    f"the map 'seg' must have {labels} channels and the size of x, or a multiple, got "
                    f"{tuple(seg.shape)} for {tuple(x.shape)}"
                )
        widths = {name: value.shape[2] for name, value in tokens.items()}
        dim = getattr(self.backbone, "cross_attention_dim", None)
        if len(set(widths.values())) > 1 or (dim and tokens and set(widths.values()) != {dim}):
            raise InvalidArgument(f"tokens have widths {widths}, the network's cross_attention_dim is {dim}")


def _given(cond: Condition, x: Tensor) -> dict[str, Tensor]:
    """The values of a condition on the device of x, zero where they are masked."""
    values: Mapping[str, Tensor] = cond.to(x.device, x.dtype).values
    masks = {name: mask.to(x.device) for name, mask in cond.masks.items()}
    return {
        name: value * masks[name].view(*masks[name].shape, *(1,) * (value.ndim - masks[name].ndim))
        for name, value in values.items()
    }
