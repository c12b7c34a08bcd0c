"""Layouts and style sets: from label maps and images grouped by patient to what the model is trained on.

A style set of an image is n images that look like it. Where they come from is the method's main choice:

    mp          other images of the same patient ("multi-patch"), which share its look and not its layout
    nearby      the n images of the same patient that lie nearest to it
    augmented   the image itself, mirrored and shifted
    none        no style: a layout-only model
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from suffuse import Condition
from suffuse.errors import InvalidArgument, unknown

from ..data.labels import LabelSchema
from .denoiser import LAYOUT, STYLE

__all__ = ["Source", "StyleSets", "layout_maps"]

Source = Literal["mp", "nearby", "augmented", "none"]


def layout_maps(labels: Tensor, classes: int | LabelSchema) -> Tensor:
    """Label maps (N, *spatial) as one-hot maps (N, K, *spatial).

    Args:
        labels: whole numbers.
        classes: what the numbers mean, or K for the numbers 0 .. K - 1.

    Raises:
        InvalidArgument: for labels that are not whole numbers, or that are no class.
    """
    schema = LabelSchema([f"class {k}" for k in range(classes)]) if isinstance(classes, int) else classes
    return schema.one_hot(labels[:, None])


class StyleSets(Dataset[tuple[Tensor, Condition]]):
    """Images with their layout and a style set, which is drawn anew in each of ``repeats`` passes.

    Args:
        images: (N, C, *spatial), what the style sets are made of.
        layout: (N, K, *spatial).
        patients: N group names.
        n: images in a style set.
        source: see the module.
        targets: (N, ...) what is denoised, when that is not the images (latents).
        repeats: passes over the data with other draws; item j is image j mod N.
        seed: the draw of item j is a function of (seed, j).
    """

    def __init__(
        self,
        images: Tensor,
        layout: Tensor,
        patients: Sequence[str],
        *,
        n: int = 4,
        source: Source = "mp",
        targets: Tensor | None = None,
        repeats: int = 20,
        seed: int = 0,
    ) -> None:
        if source not in get_args(Source):
            raise unknown("source", source, get_args(Source))
        if not len(images) == len(layout) == len(patients) or len(images) == 0:
            raise InvalidArgument(
                f"images, layout and patients must be as many, got {len(images)}, {len(layout)}, {len(patients)}"
            )
        if not bool(torch.isfinite(images).all()):
            raise InvalidArgument("images have NaN or infinite voxels; mask or fill them first")
        if n < 1 or repeats < 1:
            raise InvalidArgument(f"n and repeats must be at least 1, got {n}, {repeats}")
        self.images, self.layout, self.targets = images, layout, images if targets is None else targets
        self.n, self.source, self.repeats, self.seed = n, source, repeats, seed
        names = np.asarray(patients)
        self.others = [np.flatnonzero((names == name) & (np.arange(len(names)) != i)) for i, name in enumerate(names)]

    def __len__(self) -> int:
        return len(self.images) * self.repeats

    def __getitem__(self, item: int) -> tuple[Tensor, Condition]:
        row = item % len(self.images)
        maps = {LAYOUT: self.layout[row : row + 1]}
        if self.source != "none":
            maps[STYLE] = self.style(row, np.random.default_rng((self.seed, item)))[None]
        return self.targets[row], Condition(maps=maps)

    def style(self, row: int, rng: np.random.Generator) -> Tensor:
        """A style set (n, C, *spatial) of one image."""
        others = self.others[row]
        if self.source == "augmented" or not len(others):
            return torch.stack([_augmented(self.images[row], rng) for _ in range(self.n)])
        if self.source == "nearby":
            order = others[np.argsort(np.abs(others - row), kind="stable")]
            return self.images[np.resize(order, self.n)]
        return self.images[rng.choice(others, self.n, replace=len(others) < self.n)]


def _augmented(image: Tensor, rng: np.random.Generator) -> Tensor:
    """The image mirrored along random axes and shifted by up to a quarter."""
    axes = tuple(range(1, image.ndim))
    image = image.flip([axis for axis in axes if rng.random() < 0.5])
    return image.roll([int(rng.integers(-(image.shape[a] // 4), image.shape[a] // 4 + 1)) for a in axes], axes)
