"""Structures with known answers, and a small trained-looking checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from suffuse_materials3d import Microstructure


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sphere() -> tuple[Microstructure, float]:
    """A ball of radius 9 um in a box of 24 x 26 x 28 voxels of 1 um, with its distance as field; and the radius.

    Its centre is at no symmetric place of the grid, where whole shells of voxels would be in or out together.
    """
    shape, centre, radius = (24, 26, 28), (12.3, 12.9, 13.6), 9.0
    at = np.stack(np.meshgrid(*(np.arange(n) + 0.5 - c for n, c in zip(shape, centre, strict=True)), indexing="ij"))
    distance = radius - np.sqrt((at**2).sum(0))
    return Microstructure.from_field(distance, unit="um"), radius


@pytest.fixture
def layers() -> Microstructure:
    """Layers across z: four voxels of phase 1, four of phase 0, repeating."""
    labels = np.zeros((16, 16, 16), dtype=np.uint8)
    labels[:, :, np.arange(16) % 8 < 4] = 1
    return Microstructure(labels, periodic=(True, True, True))


@pytest.fixture
def balls() -> tuple[Microstructure, float, float]:
    """Overlapping balls of radius R in a periodic box; phase 0 is the void between. With R and eta = density volume."""
    n, radius, eta = 80, 5.0, 0.8
    rng = np.random.default_rng(0)
    count = rng.poisson(eta / (4 / 3 * math.pi * radius**3) * n**3)
    labels = np.zeros((n, n, n), dtype=np.uint8)
    reach = np.arange(-6, 8)
    for centre in rng.uniform(0, n, (count, 3)):
        near = [np.floor(c).astype(int) + reach for c in centre]
        d2 = sum(np.meshgrid(*((a + 0.5 - c) ** 2 for a, c in zip(near, centre, strict=True)), indexing="ij"))
        index = np.ix_(*(a % n for a in near))
        labels[index] |= (d2 < radius**2).astype(np.uint8)
    return Microstructure(labels, periodic=(True, True, True)), radius, eta
