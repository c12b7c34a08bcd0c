"""A network compiled for planning: its weights are constants of the code.

As constants they are laid out for the processor's matrix units once, in the precision that they are used in, and what
follows a product (a bias, an activation) is computed within it. Attention is written as two products and a softmax,
which the compiler fuses: plans are short, and kernels made for long sequences take longer. On a CPU that halves the
time of a decision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["compile_frozen"]


def compile_frozen(network: nn.Module, **options: Any) -> None:
    """Compile a network in place, as ``network.compile``; the first call of every shape then takes long.

    Weights that change afterwards are noticed, and it is compiled again. Where gradients are enabled, and on
    accelerators, nothing of this is done: there it is the plain ``torch.compile``.

    Args:
        network: called without gradients, and not trained any more.
        options: of ``torch.compile``; by default ``dynamic=False``.
    """
    from torch._inductor import config
    from torch.nn.attention import SDPBackend, sdpa_kernel

    compiled = torch.compile(network._call_impl, **{"dynamic": False, **options})
    built_in: Stamp | None = None

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal built_in
        stamp = _stamp(network)
        if stamp is None:
            return compiled(*args, **kwargs)
        if built_in not in (None, stamp):
            torch._dynamo.reset()  # what was compiled does not look at the weights again
        built_in = stamp
        with config.patch(freezing=True), sdpa_kernel(SDPBackend.MATH):
            return compiled(*args, **kwargs)

    network._compiled_call_impl = call  # type: ignore[assignment]


Stamp = list[tuple[int, int]]


def _stamp(network: nn.Module) -> Stamp | None:
    """What changes when a weight does; None where weights are not to be built in."""
    weights = [*network.parameters(), *network.buffers()]
    if torch.is_grad_enabled() or any(w.device.type != "cpu" for w in weights):
        return None
    return [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
