r"""S4D: a diagonal state-space layer as one long convolution, and the TSDiff backbone made of such layers.

Every channel h filters its sequence u with a linear system of N complex states, in conjugate pairs,

    s' = A s + B u,   y = 2 Re(C s) + D u,      A_n = -exp(a_n) + i b_n,   B = 1.

Sampled with step dt by zero-order hold it is a convolution y = K * u + D u with the kernel

    K[l] = 2 Re sum_n Cbar_n exp(dt A_n l),     Cbar_n = C_n (exp(dt A_n) - 1) / A_n,

evaluated in O(N L) and applied by FFT in O(L log L). Initialisation S4D-Lin: a_n = log 1/2, b_n = pi n.
Gu, Gupta, Goel, Re (2022), "On the Parameterization and Initialization of Diagonal State Space Models",
arXiv:2206.11893. It stands where TSDiff has the full DPLR-S4; that paper reports the two near parity.

All of it is real arithmetic, so it compiles as it stands; kernel and FFT are float32 or wider even under autocast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse import Condition, hub
from suffuse.errors import InvalidArgument
from suffuse.nets import NoiseEmbedding

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

        steps = torch.arange(length, device=dt.device, dtype=dt.dtype)
        envelope = (decay[..., None] * steps).exp()
        phase = turn[..., None] * steps
        re, im = envelope * phase.cos(), envelope * phase.sin()  # exp(dt A l), (H, N/2, L)
        return 2 * (torch.einsum("dhn,hnl->dhl", c_re, re) - torch.einsum("dhn,hnl->dhl", c_im, im))

    def spectrum(self, length: int) -> Tensor:
        """FFT of the two-sided kernel on a circle of 2 L points, (H, L + 1) complex."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self._spectrum(length)
        parameters = (self.log_dt, self.log_decay, self.frequency, self.c)
        key = (length, *((p.data_ptr(), p._version, p.device, p.dtype) for p in parameters))
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self._spectrum(length))
        return self._kept[1]

    def _spectrum(self, length: int) -> Tensor:
        forward, *backward = self.kernel(length)
        circle = F.pad(forward, (0, length))
        if backward:
            circle = circle + F.pad(backward[0].flip(-1), (length, 0))
        return torch.fft.rfft(circle)

    def forward(self, u: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):
            wide = u.to(self.d.dtype)
            length = wide.shape[-1]
            y = torch.fft.irfft(torch.fft.rfft(wide, n=2 * length) * self.spectrum(length), n=2 * length)
            return (y[..., :length] + self.d[:, None] * wide).to(u.dtype)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}  # copies and pickles start without a kept spectrum


class Block(nn.Module):
    """z = u + W_t emb;  z = z + W_o GELU(S4D(norm z)) + W_c c;  g = tanh(z) sigmoid(z);  return u + W_1 g, W_2 g."""

    def __init__(self, width: int, embedding: int, given: int, state: int) -> None:
        super().__init__()
        self.level = nn.Linear(embedding, width)
        self.norm = nn.GroupNorm(1, width)
        self.s4d = S4D(width, state)
        self.mix = nn.Conv1d(width, width, 1)
        self.given = nn.Conv1d(given, width, 1) if given else None
        self.out = nn.Conv1d(width, 2 * width, 1)

    def forward(self, u: Tensor, embedding: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        z = u + self.level(embedding)[..., None]
        z = z + self.mix(F.gelu(self.s4d(self.norm(z))))
        if self.given is not None and given is not None:
            z = z + self.given(given)
        gate = torch.tanh(z) * torch.sigmoid(z)
        residual, skip = self.out(gate).chunk(2, dim=1)
        return u + residual, skip


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
    """

    def __init__(
        self, channels: int = 1, *, width: int = 64, depth: int = 3, state: int = 64, conditional: bool = True
    ) -> None:
        super().__init__()
        self.channels, self.conditional = channels, conditional
        self.embed = nn.Sequential(NoiseEmbedding(width), nn.SiLU())
        self.input = nn.Conv1d(channels, width, 1)
        given = 2 * channels if conditional else 0
        self.blocks = nn.ModuleList(Block(width, width, given, state) for _ in range(depth))
        self.head = nn.Sequential(nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, channels, 1))
        nn.init.zeros_(self.head[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        given = self.read(x, cond) if self.conditional else None
        embedding = self.embed(c_noise)
        u, total = F.relu(self.input(x)), 0.0
        for block in self.blocks:
            u, skip = block(u, embedding, given)
            total = total + skip
        return self.head(total)

    def read(self, x: Tensor, cond: Condition | None) -> Tensor | None:
        """values and observed stacked, (B, 2 C, L); None where there is no condition at all."""
        if cond is None or not len(cond):
            return torch.cat([torch.zeros_like(x)] * 2, dim=1)
        cond.expect(len(x), maps={"values": self.channels, "observed": self.channels})
        stacked = torch.cat([cond.maps["values"], cond.maps["observed"]], dim=1).to(x.dtype)
        present = cond.masks["values"] & cond.masks["observed"]
        return stacked * present[:, None, None]
