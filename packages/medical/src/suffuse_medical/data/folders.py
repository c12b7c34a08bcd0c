"""Datasets that lie in files: NIfTI volumes with label maps, pictures with masks, and MedMNIST's arrays.

Items are MONAI dictionaries. They name their patient where the files do: NIfTI folders by file name. MedMNIST and
folders of pictures do not say which images are of one patient, so their items have no ``patient_id``,
:func:`group_split` refuses them, and results on them can only be by image: say so beside every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from suffuse.errors import InvalidArgument

from .geometry import reorient
from .nifti import open_nifti, read_nifti

if TYPE_CHECKING:
    from PIL.Image import Image


class VolumeFolder(Dataset[dict[str, Any]]):
    """NIfTI volumes in a folder, with label maps of the same names in another: the layout of the Decathlon.

    Items hold ``image`` and ``label`` (1, X, Y, Z), MetaTensors whose place is :meth:`Geometry.of` each, also after
    MONAI's transforms; and ``patient_id`` = ``study_id`` = the file's name.

    Args:
        images: folder of .nii or .nii.gz files; names that start with a dot are left out.
        labels: folder of their label maps, on the same grids; None for none.
        orientation: axis codes that all volumes are turned to, exactly, by flips and transpositions; None to keep
            them, and to refuse a folder of several orientations.
    """

    def __init__(
        self, images: str | Path, labels: str | Path | None = None, *, orientation: str | None = "RAS"
    ) -> None:
        self.files = nifti_files(images)
        self.labels = None
        if labels is not None:
            folder = Path(labels)
            self.labels = [folder / file.name for file in self.files]
            if missing := [file.name for file in self.labels if not file.is_file()]:
                raise InvalidArgument(
                    f"labels folder {folder.name!r} lacks {len(missing)} of {len(self.files)} files, for instance "
                    f"{missing[0]}"
                )
        self.orientation = orientation
        if orientation is None:
            found: dict[str, str] = {}
            for file in self.files:
                found.setdefault(_axcodes(file), file.name)
            if len(found) > 1:
                raise InvalidArgument(
                    f"images have mixed orientations, {', '.join(f'{k} ({v})' for k, v in sorted(found.items()))}; "
                    f"pass orientation='RAS' to turn them all"
                )

    @property
    def names(self) -> list[str]:
        """Of the volumes, which are the patient ids."""
        return [file.name.removesuffix(".gz").removesuffix(".nii") for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image, geometry = read_nifti(self.files[index])
        volumes = {"image": (image, geometry)}
        if self.labels is not None:
            label, where = read_nifti(self.labels[index])
            if not where.isclose(geometry, tolerance=1e-3):
                raise InvalidArgument(f"label {self.labels[index].name} lies on another grid than its image")
            volumes["label"] = label, geometry.stored_as(where.dtype)
        if self.orientation is not None:
            volumes = {key: reorient(volume, where, self.orientation) for key, (volume, where) in volumes.items()}
        name = self.names[index]
        return {
            **{key: where.attach(volume) for key, (volume, where) in volumes.items()},
            "patient_id": name,
            "study_id": name,
        }


def nifti_files(folder: str | Path) -> list[Path]:
    """The NIfTI files of a folder, sorted."""
    folder = Path(folder)
    found = folder.iterdir() if folder.is_dir() else ()
    files = sorted(f for f in found if f.name.endswith((".nii", ".nii.gz")) and not f.name.startswith("."))
    if not files:
        raise InvalidArgument(f"images: {folder.name!r} is no folder with .nii or .nii.gz files")
    return files


def _axcodes(file: Path) -> str:
    import nibabel

    return "".join(map(str, nibabel.aff2axcodes(open_nifti(file).affine)))


class PictureFolder(Dataset[dict[str, Any]]):
    """Pictures (PNG, JPEG, TIFF) in a folder, with masks of the same stem in another.

    Items hold ``image`` (C, H, W) in [0, 1], one channel or three without transparency; ``label`` (1, H, W) with the
    mask's own numbers; and ``study_id``, the file's name. There is no ``patient_id``: nobody knows it. 1 is the white
    of the file's type, not of the picture: 1, 255 or 65535 for 1, 8 and 16 bits. Floats must lie in [0, 1].
    """

    SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

    def __init__(self, images: str | Path, labels: str | Path | None = None) -> None:
        self.files = self._pictures(Path(images))
        if not self.files:
            raise InvalidArgument(f"images: {Path(images).name!r} is no folder with pictures {self.SUFFIXES}")
        self.labels = None
        if labels is not None:
            found = {file.stem: file for file in self._pictures(Path(labels))}
            if missing := [file.stem for file in self.files if file.stem not in found]:
                raise InvalidArgument(f"labels: {len(missing)} pictures have no mask, for instance {missing[0]!r}")
            self.labels = [found[file.stem] for file in self.files]

    def _pictures(self, folder: Path) -> list[Path]:
        return sorted(f for f in folder.glob("*") if f.suffix.lower() in self.SUFFIXES) if folder.is_dir() else []

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        item: dict[str, Any] = {"image": _picture(self.files[index]), "study_id": self.files[index].stem}
        if self.labels is not None:
            item["label"] = _channels(_open(self.labels[index]))[:1].long()
            if item["label"].shape[1:] != item["image"].shape[1:]:
                raise InvalidArgument(f"the mask of {item['study_id']!r} has another size than its picture")
        return item


def _picture(file: Path) -> Tensor:
    """(C, H, W) in [0, 1]."""
    picture = _open(file)
    if picture.mode not in ("1", "L", "I", "F") and not picture.mode.startswith("I;16"):
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    mode, pixels = picture.mode, _channels(picture)
    if mode == "I" or (mode == "F" and not bool(((pixels >= 0) & (pixels <= 1)).all())):
        raise InvalidArgument(
            f"{file.name!r} has {'32-bit integers' if mode == 'I' else 'floats beyond [0, 1]'}, of which nobody knows "
            f"what is white; scale them to [0, 1] or to 16 bits"
        )
    return pixels / (65535 if mode.startswith("I;16") else {"1": 1, "F": 1}.get(mode, 255))


def _open(file: Path) -> Image:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return picture.copy()
    except OSError as error:
        raise InvalidArgument(f"{file.name!r} is no readable picture: {error}") from error


def _channels(picture: Image) -> Tensor:
    """The numbers in a picture, (C, H, W): of a palette the entries, not the colours."""
    array = np.atleast_3d(np.array(picture)).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


class MedMNIST(Dataset[dict[str, Any]]):
    """One split of a MedMNIST archive (``pneumoniamnist.npz``), without the package of that name.

    Items hold ``image`` (C, H, W) or (1, X, Y, Z) in [0, 1], ``label``, int64 of the labels' own shape, and
    ``study_id``. The archive does not say which images are of one patient: use its own splits. Nothing is downloaded.
    Yang et al. (2023), "MedMNIST v2", Scientific Data 10:41.

    Args:
        path: the archive.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """

    def __init__(self, path: str | Path, split: Literal["train", "val", "test"] = "train") -> None:
        path = Path(path)
        if split not in ("train", "val", "test"):
            raise InvalidArgument(f"split must be 'train', 'val' or 'test', got {split!r}")
        if not path.is_file():
            raise InvalidArgument(f"path {path.name!r} is not a file; fetch the archive from medmnist.com first")
        try:
            with np.load(path, allow_pickle=False) as archive:
                images, labels = archive[f"{split}_images"], archive[f"{split}_labels"]
        except (KeyError, ValueError, OSError) as error:
            raise InvalidArgument(f"path {path.name!r} is no MedMNIST archive: {error}") from error
        if len(images) != len(labels) or images.dtype != np.uint8:
            raise InvalidArgument(f"path {path.name!r} has {len(images)} images and {len(labels)} labels of {split}")
        colour = images.ndim == 4 and images.shape[-1] == 3
        pixels = torch.from_numpy(images)
        #: (N, C, H, W) or (N, 1, X, Y, Z), bytes.
        self.images = pixels.movedim(-1, 1) if colour else pixels[:, None]
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.name, self.split = path.stem, split

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {
            "image": self.images[index].float() / 255,
            "label": self.labels[index],
            "study_id": f"{self.name}-{self.split}-{index:05d}",
        }


def stack(items: Dataset[dict[str, Any]], key: str = "image", rows: Sequence[int] | None = None) -> Tensor:
    """Some rows of a dataset as one tensor (N, ...), all of one size."""
    rows = range(len(items)) if rows is None else rows  # type: ignore[arg-type]
    values = [torch.as_tensor(items[i][key]) for i in rows]
    if not values:
        raise InvalidArgument("rows is empty; name at least one row")
    sizes = {tuple(v.shape) for v in values}
    if len(sizes) != 1:
        raise InvalidArgument(f"{key} come in several sizes, {sorted(sizes)[:3]}; resample, crop or pad them")
    return torch.stack(values)
