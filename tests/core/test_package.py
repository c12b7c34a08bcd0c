"""The package itself: lazy modules, randomness, errors, the data folder."""

import subprocess
import sys

import pytest
import torch

import suffuse
from suffuse.errors import InvalidArgument, MissingExtra, require, unknown
from suffuse.random import generators, randn


def test_importing_suffuse_does_not_import_torch():
    code = "import sys, suffuse; suffuse.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves():
    for name in suffuse.__all__:
        assert getattr(suffuse, name) is not None
    assert set(dir(suffuse)) == set(suffuse.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        suffuse.nothing  # noqa: B018


def test_noise_is_the_same_alone_or_in_a_batch():
    batch = randn((4, 3), generators([5, 6, 7, 8]))
    assert torch.equal(batch[2:3], randn((1, 3), generators([7])))
    assert torch.equal(randn((4, 3), generators([1])[0]), randn((4, 3), generators([1])[0]))
    with pytest.raises(InvalidArgument, match="2 entries for a batch of 3"):
        randn((3, 1), generators([1, 2]))


def test_missing_extras_and_unknown_names():
    assert require("json", extra="x").loads("1") == 1
    with pytest.raises(MissingExtra, match="pip install 'suffuse-graphs\\[x\\]'"):
        require("no_such_module_of_ours", extra="x", package="suffuse-graphs")
    assert "did you mean 'karras'" in str(unknown("grid", "karas", ["karras", "time"]))


def test_the_data_folder(monkeypatch, tmp_path):
    from suffuse.data import data_root

    monkeypatch.delenv("SUFFUSE_DATA", raising=False)
    assert data_root() is None
    monkeypatch.setenv("SUFFUSE_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("SUFFUSE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidArgument, match="is not a folder"):
        data_root()
