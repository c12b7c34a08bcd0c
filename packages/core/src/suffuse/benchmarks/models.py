"""Small models of real data, trained within the run: what samplers are compared on beside the exact denoisers.

    digits     8 x 8 handwritten digits that scikit-learn carries
    mnist      28 x 28 handwritten digits, from the data folder
    fashion    28 x 28 pictures of clothes, from the data folder
    ett        windows of 24 hours of 7 sensors of electricity transformers, from the data folder

Each is a transformer over patches, unconditional, on the schedule and preconditioning of Karras et al. (2022).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from suffuse.bench import Skipped

if TYPE_CHECKING:
    from torch import Tensor

    from suffuse.bench import Run
    from suffuse.denoiser import NetworkDenoiser

__all__ = ["MODELS", "Model", "Split", "train"]


@dataclass(frozen=True)
class Split:
    """Training and held-out samples (N, *event), and the labels (N,) of each where there are any."""

    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


@dataclass(frozen=True)
class Model:
    """A data set and the network that learns it.

    Attributes:
        title: of the data, in tables.
        load: data folder (or None) -> Split. Raises Skipped where the data are absent.
        ndim, patch, hidden: of the transformer.
        steps: of training, (quick, full).
    """

    title: str
    load: Callable[[Path | None], Split]
    ndim: int
    patch: int
    hidden: int
    steps: tuple[int, int]


def train(model: Model, split: Split, run: Run) -> NetworkDenoiser:
    """The trained denoiser, on the run's device."""
    import torch

    from suffuse.denoiser import NetworkDenoiser
    from suffuse.nets import DiT
    from suffuse.schedules import EDM
    from suffuse.training import DenoisingObjective, LogNormalKappa, fit

    torch.manual_seed(run.seed)
    channels = split.train.shape[1]
    backbone = DiT(channels, model.patch, ndim=model.ndim, hidden=model.hidden, depth=3, heads=4)
    denoiser = NetworkDenoiser(backbone, EDM(), data_std=float(split.train.std()))
    # wider than the usual spread of levels: solvers are compared from kappa = 80 on, so it must be learned there
    objective = DenoisingObjective(time=LogNormalKappa(-0.8, 1.6))
    trained = fit(
        denoiser,
        split.train,
        steps=model.steps[run.profile == "full"],
        batch_size=64,
        lr=1e-3,
        objective=objective,
        seed=run.seed,
        accelerator=run.device,
        progress=run.progress,
    )
    return trained.to(run.device)


def _digits(folder: Path | None) -> Split:
    from suffuse.digits import load_digits

    data = load_digits()
    return Split(data.images, data.test_images, data.labels, data.test_labels)


def _mnist(folder: Path | None) -> Split:
    import torch

    raw = _present(folder, "images/mnist/MNIST/raw")

    def read(name: str, header: int) -> Tensor:
        """An idx file of bytes."""
        return torch.frombuffer(bytearray(gzip.decompress((raw / name).read_bytes())[header:]), dtype=torch.uint8)

    def images(part: str) -> Tensor:
        return read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28) / 127.5 - 1

    def labels(part: str) -> Tensor:
        return read(f"{part}-labels-idx1-ubyte.gz", 8).long()

    return Split(images("train"), images("t10k"), labels("train"), labels("t10k"))


def _fashion(folder: Path | None) -> Split:
    import numpy as np
    import torch

    with np.load(_present(folder, "images/fashion_mnist_pool10k.npz")) as arrays:
        images = torch.tensor(arrays["images"]).reshape(-1, 1, 28, 28) / 127.5 - 1
        labels = torch.tensor(arrays["labels"]).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:8000], order[8000:]
    return Split(images[train], images[test], labels[train], labels[test])


def _ett(folder: Path | None, hours: int = 24, stride: int = 6) -> Split:
    """Windows (N, 7, 24), each sensor standardised over the training part; the last fifth of the time is held out."""
    import torch

    file = _present(folder, "timeseries/gluonts/ett_small_1h/train/data.json.gz")
    lines = [json.loads(line)["target"] for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    length = min(map(len, lines))
    # two transformers of seven sensors each
    series = torch.tensor([line[:length] for line in lines]).reshape(2, 7, length)
    cut = int(0.8 * length)
    series = (series - series[..., :cut].mean(-1, keepdim=True)) / series[..., :cut].std(-1, keepdim=True)

    def windows(part: Tensor) -> Tensor:
        return part.unfold(-1, hours, stride).permute(0, 2, 1, 3).reshape(-1, 7, hours).contiguous()

    return Split(windows(series[..., :cut]), windows(series[..., cut:]))


def _present(folder: Path | None, name: str) -> Path:
    if folder is None or not (folder / name).exists():
        raise Skipped(f"needs {name} in the data folder; set SUFFUSE_DATA to a folder that holds it")
    return folder / name


#: By short name; the first needs no data folder.
MODELS: dict[str, Model] = {
    "digits": Model("digits 8 x 8", _digits, ndim=2, patch=2, hidden=64, steps=(1000, 1500)),
    "mnist": Model("MNIST", _mnist, ndim=2, patch=4, hidden=64, steps=(300, 1000)),
    "ett": Model("ETT windows", _ett, ndim=1, patch=2, hidden=64, steps=(300, 1500)),
    "fashion": Model("Fashion-MNIST", _fashion, ndim=2, patch=4, hidden=64, steps=(300, 1000)),
}
