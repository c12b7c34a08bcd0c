r"""S4D: a diagonal state-space layer as one long convolution, and the TSDiff backbone made of such layers.

Every channel h filters its sequence u with a linear system of N complex states, in conjugate pairs,

    s' = A s + B u,   y = 2 Re(C s) + D u,      A_n = -exp(a_n) + i b_n,   B = 1.

Sampled with step dt by zero-order hold it is a convolution y = K * u + D u with the kernel

    K[l] = 2 Re sum_n Cbar_n exp(dt A_n l),     Cbar_n = C_n (exp(dt A_n) - 1) / A_n,

applied by FFT in O(L log L). Its exponentials are products: with l = m a + b and m about sqrt(L),

    K[m a + b] = 2 Re sum_n (Cbar_n exp(dt A_n m a)) exp(dt A_n b),

so N sqrt(L) of them and one matrix product per channel make all L values. Initialisation S4D-Lin: a_n = log 1/2,
b_n = pi n.
Gu, Gupta, Goel, Re (2022), "On the Parameterization and Initialization of Diagonal State Space Models",
arXiv:2206.11893. It stands where TSDiff has the full DPLR-S4; that paper reports the two near parity.

All of it is real arithmetic, so it compiles as it stands; kernel and FFT are float32 or wider even under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse import Condition, hub
from suffuse.errors import InvalidArgument
from suffuse.nets import NoiseEmbedding

from .covariates import CovariateEncoder

__all__ = ["S4D", "S4DBackbone"]


class S4D(nn.Module):
    """A diagonal state-space convolution along time, (B, H, L) -> (B, H, L) for any L.

    The bidirectional layer adds a strictly anticausal kernel: A and dt are shared by both directions, C is not,

        y[l] = sum_{j <= l} K_0[l - j] u[j] + sum_{j > l} K_1[j - l - 1] u[j] + D u[l].

    The spectrum of the kernel is kept between calls when no gradient can reach it (inside ``torch.no_grad()``, or with
    frozen parameters, as while a forecast is guided), and computed anew as soon as a parameter changes.

    Args:
        channels: H.
        state: N, the number of complex states in conjugate pairs per channel (N / 2 are stored).
        bidirectional: whether the output at l sees the input after l.
        dt_min, dt_max: the time constants are log-uniform in this range at the start.
    """

    def __init__(
        self, channels: int, state: int = 64, *, bidirectional: bool = True, dt_min: float = 1e-3, dt_max: float = 0.1
    ) -> None:
        super().__init__()
        if channels < 1 or state < 2 or state % 2:
            raise InvalidArgument(f"need channels >= 1 and an even state >= 2, got {channels=}, {state=}")
        pairs, directions = state // 2, 1 + bidirectional
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(dt_min), math.log(dt_max)))
        self.log_decay = nn.Parameter(torch.full((channels, pairs), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(pairs).float().repeat(channels, 1))
        self.c = nn.Parameter(torch.randn(directions, channels, pairs, 2) * 0.5**0.5)  # (re, im), E|C|^2 = 1
        self.d = nn.Parameter(torch.randn(channels))
        self._kept: tuple[object, Tensor] | None = None

    def kernel(self, length: int) -> Tensor:
        """K of each direction, (directions, H, L), by real arithmetic."""
        dt = self.log_dt.exp()[:, None]
        decay, turn = -self.log_decay.exp() * dt, self.frequency * dt  # dt A = decay + i turn, (H, N/2)
        grown = decay.exp()
        e_re, e_im = grown * turn.cos() - 1, grown * turn.sin()  # exp(dt A) - 1
        a_re, a_im = decay / dt, self.frequency
        norm = a_re**2 + a_im**2
        q_re, q_im = (e_re * a_re + e_im * a_im) / norm, (e_im * a_re - e_re * a_im) / norm  # (exp(dt A) - 1) / A
        c_re, c_im = self.c.unbind(-1)
        c_re, c_im = c_re * q_re - c_im * q_im, c_re * q_im + c_im * q_re  # Cbar, (directions, H, N/2)

        stride = math.isqrt(length - 1) + 1  # m: l = m a + b with a, b < m

        def power(steps: Tensor) -> tuple[Tensor, Tensor]:
            """exp(dt A l), real and imaginary, each (H, N/2, l)."""
            size, phase = (decay[..., None] * steps).exp(), turn[..., None] * steps
            return size * phase.cos(), size * phase.sin()

        steps = torch.arange(stride, device=dt.device, dtype=dt.dtype)
        (far_re, far_im), near = power(stride * steps), power(steps)
        c_re, c_im = c_re[..., None], c_im[..., None]
        far = torch.cat([c_re * far_re - c_im * far_im, -(c_re * far_im + c_im * far_re)], dim=-2)
        return 2 * (far.mT @ torch.cat(near, dim=-2)).flatten(-2)[..., :length]

    def spectrum(self, length: int) -> Tensor:
        """FFT of the two-sided kernel, D in its middle, on a circle of 2 L points, (H, L + 1) complex."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self._spectrum(length)
        parameters = (self.log_dt, self.log_decay, self.frequency, self.c, self.d)
        key = (length, *((p.data_ptr(), p._version, p.device, p.dtype) for p in parameters))
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # what is kept may meet a gradient later
                self._kept = (key, self._spectrum(length))
        return self._kept[1]

    def _spectrum(self, length: int) -> Tensor:
        forward, *backward = self.kernel(length)
        circle = F.pad(forward, (0, length))
        if backward:
            circle = circle + F.pad(backward[0].flip(-1), (length, 0))
        return torch.fft.rfft(circle) + self.d[:, None]

    def forward(self, u: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):
            wide = u.to(self.d.dtype)
            return Convolution.apply(wide, self.spectrum(wide.shape[-1])).to(u.dtype)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}  # copies and pickles start without a kept spectrum


class Convolution(torch.autograd.Function):
    """y = irfft(rfft(u) S) on a circle of 2 L points, cut to L; u (B, H, L), S (H, L + 1) complex.

    The gradient by u is the same with the conjugate of S, the gradient by S the correlation of u and the incoming one.
    Autograd would take the first through a complex transform of twice the size.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, spectrum: Tensor) -> Tensor:
        length = u.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(u, 2 * length) * spectrum, 2 * length)[..., :length]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        u, spectrum = ctx.saved_tensors
        length = u.shape[-1]
        by_u = by_spectrum = None
        waves = torch.fft.rfft(gradient, 2 * length)
        if ctx.needs_input_grad[0]:
            by_u = torch.fft.irfft(waves * spectrum.conj(), 2 * length)[..., :length]
        if ctx.needs_input_grad[1]:
            both = torch.full_like(spectrum.real, 1 / length)  # a frequency stands for its negative too, except
            both[..., ::length] /= 2  # for the first and the last
            by_spectrum = (torch.fft.rfft(u, 2 * length).conj() * waves).sum(0) * both
        return by_u, by_spectrum


class Pointwise(nn.Conv1d):
    """A convolution of kernel size 1 as the matrix product that it is, (B, in, L) -> (B, out, L)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return torch.baddbmm(self.bias[:, None], self.weight[..., 0].expand(len(x), -1, -1), x)

    def add(self, y: Tensor, x: Tensor, part: slice = slice(None)) -> Tensor:
        """y + W x + b, of some of the outputs."""
        assert self.bias is not None
        return torch.baddbmm(y, self.weight[part, :, 0].expand(len(x), -1, -1), x).add_(self.bias[part, None])


class Block(nn.Module):
    """z = u + W_t emb;  z = z + W_o GELU(S4D(norm z)) + W_c c;  g = tanh(z) sigmoid(z);  u += W_1 g, skips += W_2 g."""

    def __init__(self, width: int, embedding: int, given: int, state: int) -> None:
        super().__init__()
        self.level = nn.Linear(embedding, width)
        self.norm = nn.GroupNorm(1, width)
        self.s4d = S4D(width, state)
        self.mix = Pointwise(width, width)
        self.given = Pointwise(given, width) if given else None
        self.out = Pointwise(width, 2 * width)

    def forward(self, u: Tensor, skips: Tensor, embedding: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        z = u + self.level(embedding)[..., None]
        z = self.mix.add(z, F.gelu(self.s4d(self.norm(z))))
        if self.given is not None and given is not None:
            z = self.given.add(z, given)
        gate = torch.tanh(z) * torch.sigmoid(z)
        width = u.shape[1]
        return self.out.add(u, gate, slice(width)), self.out.add(skips, gate, slice(width, None))


@hub.serializable
class S4DBackbone(nn.Module):
    """The network of TSDiff: residual S4D blocks over a window of a series and its lags.

    Input and output are (B, C, L), channel 0 the scaled series and channel j the series shifted by lag j; every channel
    is diffused. With ``conditional`` the network also reads what is known of the window, as the maps
    ``values`` (B, C, L), zero where unknown, and ``observed`` (B, C, L), one where known, through a 1x1 convolution per
    block (TSDiff-Cond). An absent condition is the same thing as a window of which nothing is known, so it needs no
    null embedding, and one network serves as the conditional and the unconditional model.

    Kollovieh et al. (2023), "Predict, Refine, Synthesize: Self-Guiding Diffusion Models for Probabilistic Time Series
    Forecasting", arXiv:2307.11494, appendix B; the defaults are its sizes except for ``state`` (128 there).

    Args:
        channels: C = 1 + number of lags.
        width: channels of the residual stream.
        depth: number of blocks.
        state: states of each S4D filter.
        conditional: whether the network reads the condition.
        dynamic, static, cardinality: covariates it reads too, see ``CovariateEncoder``.
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        width: int = 64,
        depth: int = 3,
        state: int = 64,
        conditional: bool = True,
        dynamic: int = 0,
        static: int = 0,
        cardinality: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.channels, self.conditional = channels, conditional
        self.covariates = CovariateEncoder(dynamic, static, cardinality)
        self.embed = nn.Sequential(NoiseEmbedding(width), nn.SiLU())
        self.input = Pointwise(channels, width)
        given = self.covariates.channels + (2 * channels if conditional else 0)
        self.blocks = nn.ModuleList(Block(width, width, given, state) for _ in range(depth))
        self.head = nn.Sequential(Pointwise(width, width), nn.ReLU(), Pointwise(width, channels))
        nn.init.zeros_(self.head[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        given = self.read(x, cond)
        embedding = self.embed(c_noise)
        u = F.relu(self.input(x))
        skips = torch.zeros_like(u)
        for block in self.blocks:
            u, skips = block(u, skips, embedding, given)
        return self.head(skips)

    def read(self, x: Tensor, cond: Condition | None) -> Tensor | None:
        """values, observed and covariates stacked, (B, G, L); None for a network that reads nothing."""
        parts = [*self.observations(x, cond)] if self.conditional else []
        if self.covariates.channels:
            parts.append(self.covariates(x, cond))
        return torch.cat(parts, dim=1) if parts else None

    def observations(self, x: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor]:
        """values and observed, (B, C, L) each; zeros where there is no condition."""
        if cond is None or "values" not in cond.names:
            return torch.zeros_like(x), torch.zeros_like(x)
        cond.expect(len(x), maps={"values": self.channels, "observed": self.channels})
        present = (cond.masks["values"] & cond.masks["observed"])[:, None, None]
        return cond.maps["values"].to(x.dtype) * present, cond.maps["observed"].to(x.dtype) * present
