"""The official TSDiff code as a peer, from a checkout of its repository; none of it is part of this package.

    git clone https://github.com/amazon-science/unconditional-time-series-diffusion
    pip install einops
    SUFFUSE_TSDIFF_OFFICIAL=unconditional-time-series-diffusion suffuse bench timeseries/speed

It was written for GluonTS 0.12. What it imports and the comparison does not run (plots, its ridge regression, scalers
that have moved) is replaced by empty modules; its network, losses and guidance run as they are, on their pure-torch
path, unless pykeops is installed.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import Denoiser

__all__ = ["VARIABLE", "Official", "checkout"]

VARIABLE = "SUFFUSE_TSDIFF_OFFICIAL"


def checkout() -> Path | None:
    """The folder named by SUFFUSE_TSDIFF_OFFICIAL, when it holds the code."""
    root = Path(os.environ.get(VARIABLE, "") or ".")
    return root / "src" if (root / "src" / "uncond_ts_diff").is_dir() else None


@contextlib.contextmanager
def importable(source: Path) -> Iterator[None]:
    """Inside, ``uncond_ts_diff`` can be imported from its source."""
    from gluonts.torch import scaler

    nothing = type("Unused", (), {"__init__": lambda self, *_, **__: None})
    stand_ins: dict[str, dict[str, Any]] = {
        "seaborn": {"set": lambda *_, **__: None},
        "opt_einsum": {"contract": torch.einsum, "contract_expression": None},
        "gluonts.torch.modules.scaler": {"MeanScaler": scaler.MeanScaler, "NOPScaler": nothing},
        "uncond_ts_diff.model.linear._estimator": {"LinearEstimator": None},
    }
    for name, content in stand_ins.items():
        own = name.startswith("uncond_ts_diff")
        try:
            if own:
                raise ImportError
            importlib.import_module(name)
        except ImportError:
            module = types.ModuleType(name)
            module.__dict__.update(content)
            sys.modules[name] = module
    sys.path.insert(0, str(source))
    logging.disable(logging.ERROR)  # it says on import that it has no fast kernel
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        sys.path.remove(str(source))


class Official:
    """Its unconditional model with the published small network (3 blocks of 64 channels, 128 states).

    Args:
        source: of ``checkout``.
        channels: C, the series and its lags.
        context, horizon: of a window, in steps.
        steps: of its diffusion.
        device: where it runs.
    """

    def __init__(self, source: Path, channels: int, context: int, horizon: int, steps: int, device: str) -> None:
        with importable(source):
            from uncond_ts_diff.configs import diffusion_small_config  # type: ignore[import-not-found]
            from uncond_ts_diff.model import TSDiff  # type: ignore[import-not-found]
            from uncond_ts_diff.sampler import DDPMGuidance  # type: ignore[import-not-found]
        self.guidance = DDPMGuidance
        sizes = {**diffusion_small_config["backbone_parameters"], "input_dim": channels, "output_dim": channels}
        self.horizon = horizon
        self.model = TSDiff(
            **{**diffusion_small_config, "backbone_parameters": sizes, "timesteps": steps},
            context_length=context,
            prediction_length=horizon,
            use_lags=False,
            init_skip=False,
        ).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def use(self, denoiser: Denoiser) -> None:
        """Put a denoiser of (B, C, L) in the place of its network, to compare what is done with one."""
        steps = self.model.timesteps

        class Network(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.denoiser = denoiser

            def forward(self, x: Tensor, t: Tensor, features: None = None) -> Tensor:
                return self.denoiser.eps(x.mT, (int(t[0]) + 1) / steps).mT

        self.model.backbone = Network()

    def train_step(self, windows: Tensor) -> None:
        """One step on windows (B, L, C): its loss, gradients clipped, Adam."""
        t = torch.randint(0, self.model.timesteps, (len(windows),), device=windows.device)
        self.optimizer.zero_grad()
        loss, *_ = self.model.p_losses(windows, t, None, loss_type="l2")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()

    def forecast(self, values: Tensor, known: Tensor, scale: float) -> Tensor:
        """Its DDPM with quantile guidance: one sample of each window (B, L, C), given its known entries."""
        guide = self.guidance(self.model, self.horizon, scale=scale, num_samples=len(values), guidance="quantile")
        return guide.guide(values, known, None, scale)
