"""Characters, masked and filled in: discrete diffusion learns the prose that Python's documentation is written in.

The text is the reference of the language, which the standard library carries (``pydoc_data``), as the letters a to z
and the space; or any file. The model is RADD: Ou et al. (2024), arXiv:2406.03736 (``suffuse.discrete``).
"""

from __future__ import annotations

from pathlib import Path

import suffuse
from suffuse.errors import InvalidArgument
from suffuse.recipes import recipe


def sample(
    checkpoint: Path,
    *,
    out: Path,
    n: int = 10,
    prompt: str = "",
    steps: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Draw texts and write them as one file, a line each.

    Args:
        checkpoint: folder that `train` wrote.
        out: folder of the file.
        n: how many.
        prompt: characters that are kept, with _ where one is to be filled in, as in "the ______ of"; what is shorter
            than the trained length is continued.
        steps: of the sampler; the network is called at most once for each character that is missing.
        temperature: below 1 prefers what is probable.
        top_p: draw each character from the most probable ones that together have this probability.
        seed: of the draws; text i depends on seed + i alone.
        device: cpu, cuda, or auto.
    """
    from suffuse.bench.row import write_text
    from suffuse.bench.runner import resolve_device
    from suffuse.discrete import Characters, TauLeaping, TokenDenoiser

    if n < 1:
        raise InvalidArgument(f"n: must be at least 1, got {n}")
    sampler = TauLeaping(steps=steps, temperature=temperature, top_p=top_p)
    about = suffuse.hub.read_config(checkpoint)["metadata"]
    alphabet = Characters(about["symbols"], about["hole"])
    start = alphabet.encode(prompt.replace("_", alphabet.hole).ljust(about["length"], alphabet.hole))
    denoiser = suffuse.hub.load(checkpoint, device=resolve_device(device))
    assert isinstance(denoiser, TokenDenoiser)
    x = sampler(denoiser, x=start.expand(n, -1), generator=suffuse.random.generators(range(seed, seed + n)))
    path = Path(out) / "samples.txt"
    write_text(path, "\n".join(alphabet.decode(x)) + "\n")
    return [path]


@recipe("core/radd", sample=sample)
def train(
    *,
    out: Path = Path("runs/radd"),
    text: Path | None = None,
    length: int = 64,
    steps: int = 2000,
    batch_size: int = 24,
    lr: float = 4e-3,
    hidden: int = 128,
    depth: int = 3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Discrete diffusion of characters, on text that comes with Python; some minutes on two CPU cores.

    Args:
        out: folder of the checkpoint and logs.
        text: a file in UTF-8 to learn instead, as it is.
        length: characters of a sample.
        steps: optimiser steps.
        batch_size: texts per step.
        lr: learning rate.
        hidden: width of the network.
        depth: number of transformer blocks.
        seed: of weights, data order and masks.
        device: cpu, cuda, or auto.
        progress: show a progress bar.
    """
    import torch

    from suffuse.discrete import Characters, NetworkTokenDenoiser, TokenTransformer, language_reference, windows

    if text is not None and not text.is_file():
        raise InvalidArgument(f"text: {str(text)!r} is not a file")
    corpus = language_reference().train if text is None else text.read_text(encoding="utf-8")
    alphabet = Characters.of(corpus)
    data = windows(alphabet.encode(corpus), length, stride=1)
    torch.manual_seed(seed)
    backbone = TokenTransformer(len(alphabet), hidden=hidden, depth=depth)
    suffuse.training.fit(
        NetworkTokenDenoiser(backbone, len(alphabet)),
        data,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema_decay=0.995,
        out=out,
        metadata={"recipe": "core/radd", "symbols": alphabet.symbols, "hole": alphabet.hole, "length": length},
        seed=seed,
        accelerator=device,
        progress=progress,
    )
    return out
