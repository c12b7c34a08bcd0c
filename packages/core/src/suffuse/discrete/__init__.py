"""Discrete diffusion: tokens that are masked one by one, and a network that says what they could have been.

denoiser = NetworkTokenDenoiser(TokenTransformer(vocabulary=27), vocabulary=27)
denoiser = suffuse.training.fit(denoiser, tokens, steps=2000)           # int64 (N, L)
x = TauLeaping(steps=256)(denoiser, shape=(16, 64))                     # or x=prompt, with masks to fill in
nats_per_token = nelbo(denoiser, held_out)
"""

from .denoiser import NetworkTokenDenoiser, TokenDenoiser
from .exact import ExactTokenDenoiser
from .likelihood import exact_nelbo, log_prob, nelbo
from .objective import TokenObjective
from .process import AbsorbingProcess
from .samplers import Ordered, TauLeaping, TokenSampler, expected_nfe
from .text import Characters, language_reference, windows
from .transformer import TokenTransformer

__all__ = [
    "AbsorbingProcess",
    "Characters",
    "ExactTokenDenoiser",
    "NetworkTokenDenoiser",
    "Ordered",
    "TauLeaping",
    "TokenDenoiser",
    "TokenObjective",
    "TokenSampler",
    "TokenTransformer",
    "exact_nelbo",
    "expected_nfe",
    "language_reference",
    "log_prob",
    "nelbo",
    "windows",
]
