"""Splits that do not leak.

Slices of one volume, studies of one patient and neighbouring slabs of one template share anatomy: a random split of
images would let the test set be looked up in the training set. Split by group, or by slab with a gap, and check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

Item = TypeVar("Item", bound=Mapping[str, Any])


def group_split(
    items: Sequence[Item], fractions: Mapping[str, float], *, by: str = "patient_id", seed: int = 0
) -> dict[str, list[Item]]:
    """Deal whole groups to the named parts, in proportion to ``fractions`` (which add up to 1).

    Args:
        items: dictionaries that each name their group under ``by``.
        fractions: for instance ``{"train": 0.7, "val": 0.1, "test": 0.2}``; every part gets at least one group.
        by: the key that must not cross parts.
        seed: of the shuffle of groups; the order of ``items`` does not matter.
    """
    if not items:
        raise InvalidArgument("items is empty; there is nothing to split")
    missing = sum(by not in item for item in items)
    if missing:
        raise InvalidArgument(f"{missing} of {len(items)} items have no {by!r}; every item must name its group")
    if min(fractions.values(), default=0) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise InvalidArgument(f"fractions must be positive and add up to 1, got {dict(fractions)}")
    groups = sorted({str(item[by]) for item in items})
    if len(groups) < len(fractions):
        raise InvalidArgument(f"{len(groups)} groups of {by!r} cannot fill {len(fractions)} parts; use fewer parts")
    np.random.default_rng(seed).shuffle(groups)
    shares = np.array(list(fractions.values()))
    counts = np.maximum(1, np.floor(shares * len(groups)).astype(int))
    while counts.sum() > len(groups):
        counts[counts.argmax()] -= 1
    while counts.sum() < len(groups):
        counts[(shares * len(groups) - counts).argmax()] += 1
    part_of = dict(zip(groups, np.repeat(list(fractions), counts), strict=True))
    return {name: [item for item in items if part_of[str(item[by])] == name] for name in fractions}


def check_splits(parts: Mapping[str, Sequence[Item]], *, by: Sequence[str] = ("patient_id", "study_id")) -> None:
    """Raise unless no patient and no study is in two parts, for splits that came from elsewhere.

    Args:
        parts: name -> items, as :func:`group_split` returns them. Augmented and synthetic images belong to the patient
            that they were made from, and should say so.
        by: the keys that must not cross; those that an item lacks are not compared, except the first, which all need.
    """
    for key in by:
        seen: dict[str, str] = {}
        for name, items in parts.items():
            missing = sum(key not in item for item in items)
            if missing and key == by[0]:
                raise InvalidArgument(f"{missing} of {len(items)} items of {name!r} have no {key!r}; name their group")
            groups = {str(item[key]) for item in items if key in item}
            if both := sorted(group for group in groups if group in seen):
                raise InvalidArgument(
                    f"{len(both)} values of {key!r} are in {seen[both[0]]!r} and in {name!r}, such as {both[0]!r}; "
                    f"split with group_split"
                )
            seen |= dict.fromkeys(groups, name)


def slab_split(
    positions: Sequence[float], held_out: tuple[float, float], gap: float = 15.0
) -> tuple[list[int], list[int]]:
    """Indices of slices to train on and of slices held out, with ``gap`` mm between them that are neither.

    Args:
        positions: of the slices along one axis, in mm.
        held_out: (low, high) in mm, both included.
        gap: distance that is discarded on either side; 15 mm brings the correlation of brain slices below 0.9.
    """
    low, high = held_out
    if not low < high or gap < 0:
        raise InvalidArgument(f"held_out must be (low, high) with low < high and gap >= 0, got {held_out} and {gap}")
    test = [i for i, z in enumerate(positions) if low <= z <= high]
    train = [i for i, z in enumerate(positions) if z < low - gap or z > high + gap]
    if not train or not test:
        raise InvalidArgument(
            f"held_out {held_out} with gap {gap} leaves {len(train)} train and {len(test)} test slices"
        )
    return train, test


def check_leakage(train: Tensor, test: Tensor, threshold: float = 0.98) -> float:
    """The largest correlation of a test image with a training image or its mirror image; raises above ``threshold``.

    Args:
        train: (N, 1, H, W). test: (M, 1, H, W). The first spatial axis is left-right.

    A split of the template into left and right halves, or into alternating slices, is refused.
    """

    def standardised(images: Tensor) -> Tensor:
        flat = images.flatten(1).double()
        flat = flat - flat.mean(1, keepdim=True)
        return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)

    known = torch.cat([standardised(train), standardised(train.flip(2))])
    worst = float((standardised(test) @ known.T).max())
    if worst > threshold:
        raise InvalidArgument(
            f"a test image correlates {worst:.3f} with a training image (limit {threshold}); split by patient or slab"
        )
    return worst
