import numpy as np
import pytest
import torch

from suffuse_medical.data import Geometry, load_slices


def _affine(directions, spacing, origin):
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, dtype=float) * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def _oblique():
    a, b = np.deg2rad(12), np.deg2rad(-7)
    x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    z = [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    return np.array(x) @ np.array(z)


AFFINES = {
    "RAS": _affine(np.eye(3), (2, 2.5, 3), (-20, -30, -12)),
    "LAS": _affine(np.diag([-1, 1, 1]), (2, 2, 3), (20, -30, -12)),
    "LIA": _affine([[-1, 0, 0], [0, 0, 1], [0, -1, 0]], (1.5, 2, 2), (15, -20, 17)),
    "oblique": _affine(_oblique(), (2, 2, 2.5), (-18, -22, -11)),
}


@pytest.fixture(params=sorted(AFFINES))
def geometry(request):
    """Grids of 12 x 14 x 10 voxels in four orientations."""
    return Geometry(AFFINES[request.param], (12, 14, 10))


@pytest.fixture(scope="session")
def slices():
    """Split of the slices of six pseudo-patients."""
    torch.set_num_threads(1)
    return load_slices("phantoms", patients=6)
