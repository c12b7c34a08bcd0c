"""What a sample is asked to be: named tokens and named maps, any of which may be absent, row by row.

A condition is data, not code. A volume fraction, a gait speed, a diagnosis or a calendar feature is a token; a tissue
map or an observed window is a map. Absence is part of the data: a value that is not given is masked, per row, and a
network puts its learned null embedding there. Dropout (for classifier-free guidance), the null condition and "any
subset of attributes requested" are then the same operation on masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import InvalidArgument

__all__ = ["Condition"]


@dataclass(frozen=True)
class Condition:
    """Named conditions for a batch of B samples.

    Args:
        tokens: name -> (B, L, D).
        maps: name -> (B, C, *spatial).
        masks: name -> bool, (B, L) for tokens and (B,) for maps, True where the value is given. Default: all given.
        nulls: name -> value that stands for "nothing asked" where a model was trained with one, (L, D) or
            (C, *spatial); for instance the embedding of an empty prompt. Without it, null means masked.

    Raises:
        InvalidArgument: when batch sizes differ, a name is used twice, or a mask does not fit its value.
    """

    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    nulls: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if both := set(self.tokens) & set(self.maps):
            raise InvalidArgument(f"condition {sorted(both)} is given both as tokens and as a map; rename one of them")
        for name, value in self.tokens.items():
            if value.ndim != 3:
                raise InvalidArgument(f"tokens[{name!r}] must be (B, L, D), got shape {tuple(value.shape)}")
        for name, value in self.maps.items():
            if value.ndim < 3:
                raise InvalidArgument(f"maps[{name!r}] must be (B, C, *spatial), got shape {tuple(value.shape)}")
        sizes = {name: len(value) for name, value in self.values.items()}
        if len(set(sizes.values())) > 1:
            raise InvalidArgument(f"all conditions must have the same batch size, got {sizes}")
        for kind, given in (("mask", self.masks), ("null value", self.nulls)):
            if stray := set(given) - set(sizes):
                raise InvalidArgument(f"{kind} for {sorted(stray)}, which is not a condition; there is {sorted(sizes)}")
        masks = {}
        for name, value in self.values.items():
            shape = value.shape[:2] if name in self.tokens else value.shape[:1]
            mask = self.masks.get(name)
            if mask is None:
                mask = torch.ones(shape, dtype=torch.bool, device=value.device)
            elif mask.shape != shape or mask.dtype != torch.bool:
                raise InvalidArgument(
                    f"masks[{name!r}] must be bool of shape {tuple(shape)}, got {mask.dtype} {tuple(mask.shape)}"
                )
            masks[name] = mask
            if name in self.nulls and self.nulls[name].shape != value.shape[1:]:
                raise InvalidArgument(
                    f"nulls[{name!r}] must have shape {tuple(value.shape[1:])}, got {tuple(self.nulls[name].shape)}"
                )
        object.__setattr__(self, "masks", masks)

    # --- reading ------------------------------------------------------------------------------------------------
    @property
    def values(self) -> dict[str, Tensor]:
        """All tokens and maps by name."""
        return {**self.tokens, **self.maps}

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.tokens, *self.maps)

    def __len__(self) -> int:
        """The batch size B (0 when there is no condition at all)."""
        return len(next(iter(self.values.values()))) if self.values else 0

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Condition:
        """Some rows of the batch; an int keeps the batch axis."""
        at: slice | Sequence[int] | Tensor
        at = [rows] if isinstance(rows, int) else rows
        return self._map(lambda v: v[at], lambda m: m[at])

    def expect(
        self, batch: int, tokens: Mapping[str, int] | None = None, maps: Mapping[str, int] | None = None
    ) -> None:
        """Check that this condition suits a model.

        Args:
            batch: the number of samples.
            tokens: name -> D that must be there.
            maps: name -> C that must be there.

        Raises:
            InvalidArgument: naming what is missing or misshapen.
        """
        if self.values and len(self) != batch:
            raise InvalidArgument(f"cond has batch size {len(self)} but x has {batch}; use cond.repeat or index it")
        for wanted, given, axis, what in ((tokens, self.tokens, 2, "tokens"), (maps, self.maps, 1, "maps")):
            for name, size in (wanted or {}).items():
                if name not in given:
                    raise InvalidArgument(
                        f"cond lacks {what}[{name!r}], which the model was built with; it has {list(given) or 'none'}. "
                        f"To leave it open, pass it masked (see Condition.null)"
                    )
                if given[name].shape[axis] != size:
                    raise InvalidArgument(
                        f"{what}[{name!r}] has {given[name].shape[axis]} features, the model was built with {size}"
                    )

    # --- absence ------------------------------------------------------------------------------------------------
    def null(self, names: Iterable[str] | None = None) -> Condition:
        """The condition that asks for nothing: null values where there are some, masked zeros elsewhere.

        Args:
            names: ask for nothing of these only, and for the others as before.
        """
        nothing = torch.ones(len(self), dtype=torch.bool)
        return self._drop(dict.fromkeys(self._known(names), nothing))

    def dropout(
        self,
        p: float,
        generator: torch.Generator | None = None,
        *,
        per_name: bool = False,
        names: Iterable[str] | None = None,
    ) -> Condition:
        """Replace the condition of a row by the null condition with probability p.

        Args:
            p: probability in [0, 1].
            generator: source of randomness, on the device of the condition.
            per_name: draw for each name apart, so that the model also learns every subset; otherwise all or nothing.
            names: drop these only; default all.
        """
        if not 0 <= p <= 1:
            raise InvalidArgument(f"dropout probability p must lie in [0, 1], got {p}")
        if not self.values or p == 0:
            return self
        device = next(iter(self.values.values())).device
        chosen = self._known(names)
        draw = torch.rand(len(chosen) if per_name else 1, len(self), generator=generator, device=device) < p
        return self._drop(dict(zip(chosen, draw.expand(len(chosen), -1), strict=True)))

    def _known(self, names: Iterable[str] | None) -> tuple[str, ...]:
        """These names, checked, or all."""
        chosen = self.names if names is None else tuple(names)
        if missing := [name for name in chosen if name not in self.names]:
            raise InvalidArgument(f"cond has no {missing}; it has {list(self.names)}")
        return chosen

    def perturb(self, strength: float, generator: torch.Generator | None = None) -> Condition:
        """Add a little noise to the tokens that are given: U(-g, g) / sqrt(D) to each of their D features.

        Slight corruption of conditions in training makes samples more diverse: Chen et al. (2024), "Slight Corruption
        in Pre-training Data Makes Better Diffusion Models", arXiv:2405.20494.

        Args:
            strength: g, about 1 for embeddings of unit scale.
            generator: source of randomness, on the device of the condition.
        """
        tokens = {}
        for name, value in self.tokens.items():
            draw = torch.rand(value.shape, generator=generator, device=value.device, dtype=value.dtype)
            delta = strength * (2 * draw - 1) / value.shape[-1] ** 0.5
            tokens[name] = torch.where(self.masks[name][..., None], value + delta, value)
        return Condition(tokens, self.maps, self.masks, self.nulls)

    def _drop(self, rows: Mapping[str, Tensor]) -> Condition:
        """Make the marked rows (name -> (B,) bool) null; names without rows stay."""
        values, masks = dict(self.values), dict(self.masks)
        for name, marked in rows.items():
            value = values[name]
            drop = marked.to(value.device)
            null = self.nulls[name].to(value) if name in self.nulls else value.new_zeros(())
            values[name] = torch.where(drop.view(-1, *(1,) * (value.ndim - 1)), null, value)
            mask = self.masks[name]
            masks[name] = torch.where(drop.view(-1, *(1,) * (mask.ndim - 1)), mask.new_tensor(name in self.nulls), mask)
        return Condition(self._only(values, self.tokens), self._only(values, self.maps), masks, self.nulls)

    # --- algebra ------------------------------------------------------------------------------------------------
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """Move to a device and, for the floating-point values, to a dtype."""

        def move(v: Tensor) -> Tensor:
            return v.to(device=device, dtype=dtype if v.is_floating_point() else None)

        nulls = {name: move(v) for name, v in self.nulls.items()}
        moved = self._map(move, lambda m: m.to(device=device))
        return Condition(moved.tokens, moved.maps, moved.masks, nulls)

    def select(self, names: Iterable[str]) -> Condition:
        """Only these names. Raises InvalidArgument for a name that is not there."""
        names = list(names)
        if missing := [n for n in names if n not in self.values]:
            raise InvalidArgument(f"cond has no {missing}; it has {list(self.names)}")
        return Condition(*(self._only(part, names) for part in (self.tokens, self.maps, self.masks, self.nulls)))

    def merge(self, other: Condition) -> Condition:
        """Both conditions on the same batch; names must differ."""
        if both := set(self.names) & set(other.names):
            raise InvalidArgument(f"both conditions have {sorted(both)}; rename or select before merging")
        pairs = ((getattr(self, k), getattr(other, k)) for k in ("tokens", "maps", "masks", "nulls"))
        return Condition(*({**a, **b} for a, b in pairs))

    def repeat(self, n: int) -> Condition:
        """Each row n times in a row: (B, ...) -> (B n, ...), as ``torch.repeat_interleave``."""
        return self._map(lambda v: v.repeat_interleave(n, 0), lambda m: m.repeat_interleave(n, 0))

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Stack batches; all must have the same names and event shapes."""
        if not conditions:
            raise InvalidArgument("conditions is empty; pass at least one Condition")
        first = conditions[0]
        for other in conditions[1:]:
            if set(other.names) != set(first.names):
                raise InvalidArgument(f"cannot concatenate conditions {sorted(first.names)} and {sorted(other.names)}")
            for name, value in first.values.items():
                if other.values[name].shape[1:] != value.shape[1:]:
                    raise InvalidArgument(
                        f"cannot concatenate {name!r} of shapes {tuple(value.shape)} and "
                        f"{tuple(other.values[name].shape)}; pad tokens and mask the padding"
                    )

        def join(part: str) -> dict[str, Tensor]:
            return {name: torch.cat([getattr(c, part)[name] for c in conditions]) for name in getattr(first, part)}

        return Condition(join("tokens"), join("maps"), join("masks"), first.nulls)

    def _map(self, value, mask) -> Condition:  # type: ignore[no-untyped-def]
        tokens, maps = ({n: value(v) for n, v in part.items()} for part in (self.tokens, self.maps))
        return Condition(tokens, maps, {n: mask(m) for n, m in self.masks.items()}, self.nulls)

    @staticmethod
    def _only(part: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        return {name: part[name] for name in names if name in part}
