"""Is a decision faster than CleanDiffuser's own sampling loop with an equal network?"""

from __future__ import annotations

import importlib
import importlib.util
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from suffuse.bench import Run, benchmark
from suffuse.errors import InvalidArgument

CHECKOUT = "CLEANDIFFUSER"
PEER = "CleanDiffuser"
FAST = ", compiled, bfloat16"
OBSERVATION, ACTION, HORIZON, CANDIDATES, STEPS, ATTRIBUTES = 17, 6, 16, 64, 5, 3


def cleandiffuser(path: Path) -> Any:
    """CleanDiffuser's package from a checkout. It imports torchvision for networks of images, which are not used here;
    where that is missing an empty module stands for it.
    """
    if not (path / "cleandiffuser").is_dir():
        raise InvalidArgument(f"{CHECKOUT}={str(path)!r} has no folder cleandiffuser; give a checkout of it")
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in (
            "torchvision",
            "torchvision.transforms",
            "torchvision.transforms.functional",
            "torchvision.models",
        ):
            sys.modules[name] = _Anything(name)
    sys.path.insert(0, str(path))
    try:
        for room in ("diffusion", "nn_condition", "nn_diffusion"):
            importlib.import_module(f"cleandiffuser.{room}")
        return importlib.import_module("cleandiffuser")
    finally:
        sys.path.remove(str(path))


class _Anything(types.ModuleType):
    """A module that has every name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self.__name__}.{name}")


def median_seconds(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds per call, measured in turns so that a busy machine is busy for all."""
    for function in functions.values():
        function()
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


@benchmark(
    "rl_planning/speed",
    paper="Dong et al. 2024, CleanDiffuser, arXiv:2406.09509",
    claim="A decision takes at most half the time of CleanDiffuser's sampling loop with an equal network.",
    peers=("CleanDiffuser",),
)
def speed(run: Run) -> None:
    """One decision for one environment: 64 candidates of 16 steps, 5 Euler steps of EDM, guidance by the null condition
    (two rows per candidate), the current state pinned. CleanDiffuser's DiT1d (width, heads and depth as stated) runs in
    its own ContinuousEDM.sample, as it is and under autocast, and, the very same module, under this package's sampler,
    as it is, with matrix products in bfloat16 (``Planner.precision``), compiled (``Planner.compile``), and both; beside
    it the core's DiT of the same width, heads and depth, with a token per step and with a token per four steps, as the
    planner is used. Ratios are to CleanDiffuser's loop as it is. Times are medians of calls in turns, in one process.
    The peer is read from the checkout that the environment variable CLEANDIFFUSER names; without one its half is left
    out, and so are the ratios.
    """
    import torch

    from suffuse import Condition, NetworkDenoiser
    from suffuse.guidance import ClassifierFree
    from suffuse.nets import DiT
    from suffuse.samplers import Euler, Inpaint
    from suffuse.schedules import EDM

    from ..planners.compiled import compile_frozen

    width, heads, depth = (96, 4, 2) if run.quick else (128, 4, 3)
    repeats = 5 if run.quick else 30
    channels = OBSERVATION + ACTION
    torch.manual_seed(run.seed)
    state = torch.randn(1, OBSERVATION)
    sampler, schedule = Euler(steps=STEPS, grid="karras"), EDM()
    known = torch.zeros(1, channels, HORIZON)
    known[:, :OBSERVATION, 0] = state
    pinned = torch.zeros(1, channels, HORIZON, dtype=torch.bool)
    pinned[:, :OBSERVATION, 0] = True

    def decide(backbone: Any, cond: Condition, *, compiled: bool = False, half: bool = False) -> Callable[[], Any]:
        if compiled:
            compile_frozen(backbone.eval())
        guided = ClassifierFree(NetworkDenoiser(backbone, schedule).eval().requires_grad_(False), 2.0)
        constraint = Inpaint(known, pinned, noised=False)

        def call() -> Any:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                return sampler(guided, shape=(CANDIDATES, channels, HORIZON), cond=cond, constraint=constraint)

        return call

    tokens = {f"attribute {k}": 7 for k in range(ATTRIBUTES)}
    cond = Condition(tokens={name: torch.rand(1, 1, 7).expand(CANDIDATES, 1, 7) for name in tokens})
    functions: dict[str, Callable[[], Any]] = {}
    for patch, compiled in ((1, False), (1, True), (4, False), (4, True)):
        backbone = DiT(channels, patch, ndim=1, hidden=width, depth=depth, heads=heads, tokens=tokens)
        label = f"our DiT, {patch} step{'s' if patch > 1 else ''} a token" + (FAST if compiled else "")
        functions[label] = decide(backbone, cond, compiled=compiled, half=compiled)

    checkout = os.environ.get(CHECKOUT)
    peer = None
    if checkout:
        try:
            peer = cleandiffuser(Path(checkout))
        except ImportError as error:
            run.note(f"CleanDiffuser's checkout does not import here: {error}")
    if peer is not None:
        functions |= theirs(peer, decide, width, heads, depth, channels, state)
    with run.stage("time"):
        seconds = median_seconds(functions, repeats)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    setting = {"candidates": CANDIDATES, "horizon": HORIZON, "nfe": STEPS, "width": width, "depth": depth}
    for name, values in seconds.items():
        common: dict[str, Any] = {"dataset": "one decision", "method": name, "setting": setting, "n": len(values)}
        run.row(
            metric="ms", value=1000 * middle[name], std=1000 * statistics.pstdev(values), better="lower", unit="ms",
            **common,
        )  # fmt: skip
        if PEER in middle and name != PEER:
            run.row(metric="ratio-to-cleandiffuser", value=middle[PEER] / middle[name], better="higher", **common)
    if PEER not in middle:
        run.note(f"No ratio: set {CHECKOUT} to a checkout of CleanDiffuser to measure it in the same process.")


def theirs(
    peer: Any, decide: Callable[..., Any], width: int, heads: int, depth: int, channels: int, state: Any
) -> dict[str, Callable[[], Any]]:
    """The peer's own loop, and its network under our sampler."""
    import torch
    from torch import nn

    from suffuse import Condition

    network = peer.nn_diffusion.DiT1d(channels, emb_dim=width, d_model=width, n_heads=heads, depth=depth).eval()
    condition = peer.nn_condition.MLPCondition(ATTRIBUTES, width, [width], dropout=0.0)
    fixed = torch.zeros(HORIZON, channels)
    fixed[0, :OBSERVATION] = 1.0
    agent = peer.diffusion.ContinuousEDM(network, condition, fix_mask=fixed, sigma_data=1.0, device="cpu")
    agent.eval()
    prior = torch.zeros(CANDIDATES, HORIZON, channels)
    prior[:, 0, :OBSERVATION] = state
    asked = torch.rand(1, ATTRIBUTES).expand(CANDIDATES, ATTRIBUTES)

    def loop(half: bool) -> Callable[[], Any]:
        def call() -> Any:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                return agent.sample(
                    prior, solver="euler", n_samples=CANDIDATES, sample_steps=STEPS, condition_cfg=asked, w_cfg=2.0
                )

        return call

    class Theirs(nn.Module):
        """Channels first, and the command as one token, around their network and their condition encoder."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.encode = agent.model_ema["diffusion"], agent.model_ema["condition"]

        def forward(self, x: Any, c_noise: Any, cond: Condition | None = None) -> Any:
            assert cond is not None
            given = cond.masks["command"][:, 0, None]
            told = self.encode(cond.tokens["command"][:, 0]) * given
            return self.net(x.transpose(1, 2), c_noise, told).transpose(1, 2)

    cond = Condition(tokens={"command": asked[:, None]})
    name = "CleanDiffuser's network, our sampler"
    return {
        PEER: loop(False),
        f"{PEER}, bfloat16": loop(True),
        name: decide(Theirs(), cond),
        f"{name}, bfloat16": decide(Theirs(), cond, half=True),
        f"{name}, compiled": decide(Theirs(), cond, compiled=True),
        f"{name}{FAST}": decide(Theirs(), cond, compiled=True, half=True),
    }
