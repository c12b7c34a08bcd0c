"""From a request to structures that are measured: denoiser + guidance + sampler + decoder.

Each part can be another: the denoiser any ``Denoiser`` of the model's latents (adapted, steered, distilled), guidance
any function of denoisers, the sampler any ``Sampler`` of core, the decoder what has ``decode_stage_2_outputs``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse import Condition, Denoiser, hub
from suffuse.errors import CheckpointError, InvalidArgument, SamplingDiverged
from suffuse.guidance import ClassifierFree, Predicted
from suffuse.random import Generators, generators
from suffuse.samplers import DPMSolverPP, Sampler

from .attributes import request_table
from .data.spinodal import request
from .descriptors import DESCRIPTORS, canonical, measure_all
from .fractions import matching_shifts, requested_shares
from .ldm import MicrostructureLDM
from .microstructure import Microstructure
from .nets import VoxelCodec
from .progress import bar
from .windows import Windowed, decode_tiles

__all__ = ["MicrostructurePipeline", "attribute_name"]

Targets = Mapping[str, float | Sequence[float]] | float | Sequence[float] | None

#: Latent cells that are sampled, and voxels that are decoded, in one piece; larger boxes go by windows and tiles.
WHOLE_CELLS, WHOLE_VOXELS = 64**3, 2**21
WINDOW, HALO, TILE = 48, 8, 16
#: Voxels of a large volume whose logits tell how to shift those of all.
LOOKED_AT = 2**20
#: Latent cells of the largest box that the predictor guides, and of a batch of them: derivatives of the denoiser keep
#: all that it computes. And the noise-to-signal ratio above which posterior means are too blurred for the predictor.
GUIDED_CELLS, GUIDED_BATCH, GUIDED_KAPPA = 32**3, 2**17, 5.0


class FractionRequests:
    """What a voxel model of one volume fraction is asked, in the place of an ``AttributeScaler``."""

    names = ("volume_fraction",)

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = float(low), float(high)

    @property
    def spread(self) -> list[float]:
        return [self.high - self.low]

    def condition(self, values: Tensor) -> Condition:
        cond = request(values[:, 0].nan_to_num())
        return Condition(cond.tokens, masks={"volume_fraction": values.isfinite()})

    def requested(self, targets: Mapping[str, Any] | None, n: int = 1) -> Tensor:
        return request_table(
            self.names, {"volume_fraction" if k == "vf_1" else k: v for k, v in (targets or {}).items()}, n
        )

    def nearest_feasible(self, values: Tensor) -> tuple[Tensor, Tensor]:
        near = values.clamp(self.low, self.high)
        return near, (near - values).abs().nan_to_num()[:, 0].where((near - values).abs()[:, 0] > 1e-6, 0.0)


class MicrostructurePipeline:
    """Structures of requested attributes.

    Args:
        model: a ``MicrostructureLDM``, in any of its parts trained or replaced.
    """

    def __init__(self, model: MicrostructureLDM) -> None:
        self.model = model

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, device: str = "cpu") -> MicrostructurePipeline:
        """The pipeline of a checkpoint folder of any recipe of this package.

        Raises:
            CheckpointError: when it is no checkpoint, or one of another recipe.
        """
        facts = hub.read_config(checkpoint)["metadata"]
        if {"volume_fraction", "shape"} <= set(facts):
            fraction: Any = FractionRequests(*facts["volume_fraction"])
            model = MicrostructureLDM(
                hub.load(checkpoint, device=device), VoxelCodec(2), fraction, None, None, tuple(facts["shape"]), {}
            )
            return cls(model)
        if "shape" not in facts:
            raise CheckpointError(
                f"checkpoint={str(checkpoint)!r} is of recipe {facts.get('recipe')!r}, which makes no microstructures"
            )
        return cls(MicrostructureLDM.load(checkpoint, device=device))

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes that can be asked for, each on its own or with others."""
        return self.model.names

    # --- what a user calls --------------------------------------------------------------------------------------
    def __call__(self, targets: Targets = None, **arguments: Any) -> list[Microstructure]:
        """Draw structures; arguments as of ``stream``, which gives them one by one."""
        return list(self.stream(targets, **arguments))

    def stream(
        self,
        targets: Targets = None,
        *,
        n: int = 1,
        shape: Sequence[int] | None = None,
        periodic: Sequence[bool] | None = None,
        steps: int = 15,
        guidance_scale: float = 1.0,
        predictor_guidance: bool = True,
        seed: int = 0,
        generator: Generators = None,
        sampler: Sampler | None = None,
        guide: Callable[[Denoiser], Denoiser] | None = None,
        strict: bool = False,
        match_fraction: bool = False,
        candidates: int = 1,
        measured: bool = True,
        spacing: Sequence[float] | None = None,
        unit: str | None = None,
        batch_size: int = 16,
        window: int | None = None,
        progress: bool = False,
    ) -> Iterator[Microstructure]:
        """Draw structures and give each as soon as its batch is done.

        Args:
            targets: attribute -> one value for all structures or a value for each, for any subset of ``names``; a
                number or list stands for the first of them; None asks for nothing.
            n: number of structures, where ``targets`` has no lists.
            shape: voxels (X, Y, Z); by default those of training, and any larger ones.
            periodic: per axis, whether the structure repeats; by default as in training.
            steps: evaluations of the network, by DPM-Solver++(2M).
            guidance_scale: w of classifier-free guidance; 1 is none.
            predictor_guidance: let the feature predictor correct the descriptors that were asked for, on the way
                (``suffuse.guidance.Predicted``), in boxes of up to 32^3 latent cells. Not process parameters: those of
                a structure can be told by the predictor alone, which would then hear its own echo.
            seed: structure i depends on (seed, i) and its request alone.
            generator: in the place of ``seed``: one for all, or one per structure.
            sampler: in the place of DPM-Solver++; ``steps`` is then its own.
            guide: in the place of both guidances: what makes the denoiser that is sampled.
            strict: raise for a request out of the hull of the data, instead of answering with the nearest feasible one.
            match_fraction: shift the logits of the phases so that the requested volume fractions (of all phases but
                one, at least) are met to a voxel; the shifts are in ``attributes["logit_shift_0"]`` and so on.
            candidates: structures that are made and measured for each that is given: the one that has what was asked
                for, by the sum of squared errors in standard deviations of the data. The first candidate is what
                ``candidates=1`` gives.
            measured: measure what was asked for, and keep it with the structure.
            spacing, unit: size of a voxel; by default of the training data.
            batch_size: structures at once.
            window: sample by windows of so many latent cells an edge; by default whole boxes up to 64^3 cells.
            progress: show progress bars.

        Yields:
            Structures with attributes ``requested_NAME`` (what the network was told), ``NAME`` (measured),
            ``predicted_NAME`` and ``predicted_NAME_std`` (process parameters and descriptors, by the predictor).

        Raises:
            InvalidArgument: for a request that makes no sense or (``strict``) that the data do not have, a shape that
                the networks do not take, periodic axes that they cannot make, or candidates of a request that asks for
                nothing that is measured.
        """
        if min(n, batch_size, candidates) < 1:
            raise InvalidArgument(
                f"n, batch_size and candidates must be at least 1, got n={n}, batch_size={batch_size}, "
                f"candidates={candidates}"
            )
        values = self._values(targets, n, strict)
        if candidates > 1 and not self._measurable(values):
            raise InvalidArgument("candidates are chosen by measurement; ask for a descriptor, a volume fraction say")
        if match_fraction:
            for row in values:  # refused before the work
                requested_shares(self._requested(row), self.model.autoencoder.phases)
        shape, periodic, cells, margin = self._box(shape, periodic)
        count = len(values)
        random = generators(seed * 1_000_003 + i for i in range(count)) if generator is None else generator
        if isinstance(random, Sequence) and len(random) != count:
            raise InvalidArgument(f"generator has {len(random)} entries for {count} structures; give one each")
        spacing, unit = self._size(spacing, unit)
        sampler = sampler or DPMSolverPP(steps=steps, grid="time")
        most = GUIDED_BATCH if math.prod(cells) <= GUIDED_CELLS else 4 * WHOLE_CELLS
        batch_size = max(1, min(batch_size, most // math.prod(cells)))
        device = self._device()
        for first in range(0, count, batch_size):
            rows = list(range(first, min(first + batch_size, count)))
            denoiser = self._denoiser(values[rows], guidance_scale, predictor_guidance, guide, cells, periodic, window)
            best: list[Microstructure] = []
            for _ in range(candidates):
                with torch.inference_mode(False):  # the predictor needs gradients
                    z = sampler(
                        denoiser,
                        (len(rows), self.model.autoencoder.latent_channels, *cells),
                        cond=self.model.scaler.condition(values[rows]).to(device),
                        generator=[random[i] for i in rows] if isinstance(random, Sequence) else random,
                        progress=progress,
                    )
                made = []
                for row, latent, guess in zip(rows, z, self.model.predict(z), strict=True):
                    about: dict[str, Any] = {} if generator is not None else {"seed": seed}
                    about |= self._requested(values[row])
                    for name, (mean, std) in guess.items():
                        about |= {f"predicted_{name}": mean, f"predicted_{name}_std": std}
                    logits = self._decode(latent[None], periodic, margin, progress)[0]
                    made.append(self._structure(logits, about, match_fraction, spacing, unit, periodic))
                if measured or candidates > 1:
                    made = self._measured(made, values[rows])
                best = [min(pair, key=self._miss) for pair in zip(best, made, strict=True)] if best else made
            yield from best

    def to_zarr(
        self,
        path: str | Path,
        targets: Targets = None,
        *,
        shape: Sequence[int],
        periodic: Sequence[bool] | None = None,
        steps: int = 15,
        guidance_scale: float = 1.0,
        predictor_guidance: bool = True,
        seed: int = 0,
        strict: bool = False,
        match_fraction: bool = False,
        spacing: Sequence[float] | None = None,
        unit: str | None = None,
        chunk: int = 64,
        window: int | None = None,
        progress: bool = True,
    ) -> Path:
        """One structure of any size, decoded tile by tile into a zarr array of labels; needs the extra ``io``.

        Only the latents, a fraction of the volume, and a few tiles are ever in memory. ``read_volume`` reads the array,
        which takes the place of an older one when it is complete.

        Args:
            path: ends in .zarr.
            match_fraction: as of ``stream``, but to a thousandth or so: everything is decoded twice, the first time to
                look at the logits of a million voxels.
            chunk: voxels of a chunk along an edge, and of a tile where the decoder's factor divides it.
            (the rest): as of ``stream``.
        """
        from .io import check_format, open_zarr, replacing

        path = Path(path)
        check_format(path)
        if path.suffix != ".zarr" or chunk < 1:
            raise InvalidArgument(f"path must end in .zarr and chunk be at least 1, got {path.name!r}, {chunk}")
        values = self._values(targets, 1, strict)
        if len(values) != 1:
            raise InvalidArgument(f"to_zarr makes one structure, targets ask for {len(values)}")
        about: dict[str, Any] = {"seed": seed, **self._requested(values[0])}
        shares = requested_shares(about, self.model.autoencoder.phases) if match_fraction else None
        shape, periodic, cells, margin = self._box(shape, periodic)
        spacing, unit = self._size(spacing, unit)
        codec = self.model.autoencoder
        with torch.inference_mode(False):  # the predictor needs gradients
            z = DPMSolverPP(steps=steps, grid="time")(
                self._denoiser(values, guidance_scale, predictor_guidance, None, cells, periodic, window),
                (1, codec.latent_channels, *cells),
                cond=self.model.scaler.condition(values).to(self._device()),
                generator=generators([seed * 1_000_003]),
                progress=progress,
            )
        if z[0, 0].numel() <= WHOLE_CELLS:
            for name, (mean, std) in self.model.predict(z)[0].items():
                about |= {f"predicted_{name}": mean, f"predicted_{name}_std": std}
        tile = max(chunk // codec.factor, 1)
        shifts = torch.zeros(codec.phases)
        if shares is not None:
            # at random, because the decoder makes every so many voxels in the same way
            dice, seen = torch.Generator().manual_seed(seed), []
            for _, logits in self._tiles(z, tile, shape, periodic, margin, progress):
                flat = logits.flatten(1)
                n = flat.shape[1]
                few = math.ceil(n * LOOKED_AT / math.prod(shape))
                seen.append(flat if few >= n else flat[:, torch.randint(n, (few,), generator=dice)])
            shifts = torch.from_numpy(matching_shifts(torch.cat(seen, 1).numpy(), shares)).float()
            about |= {f"logit_shift_{k}": float(b) for k, b in enumerate(shifts)}
        counts = torch.zeros(codec.phases, dtype=torch.long)
        with replacing(path) as partial:
            array = open_zarr(partial, shape, chunk, spacing=spacing, unit=unit, periodic=periodic)
            for place, logits in self._tiles(z, tile, shape, periodic, margin, progress):
                labels = (logits + shifts[:, None, None, None]).argmax(0).to(torch.uint8)
                array[tuple(slice(a, b) for a, b in place)] = labels.numpy()
                counts += torch.bincount(labels.flatten().long(), minlength=codec.phases)
            about |= {f"vf_{k}": v for k, v in enumerate((counts.double() / counts.sum()).tolist())}
            array.attrs.update(attributes=about, complete=True)
        return path

    def _tiles(
        self,
        z: Tensor,
        tile: int,
        shape: Sequence[int],
        periodic: Sequence[bool],
        margin: Sequence[int],
        progress: bool,
    ) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
        """((first, last + 1) along each axis, logits (K, ...) there on the CPU) of all tiles, without the margin."""
        codec = self.model.autoencoder
        wraps = tuple(p or has for p, has in zip(periodic, codec.periodic, strict=True))
        total = math.prod(math.ceil(n / tile) for n in z.shape[2:])
        with torch.no_grad(), bar("decoding", total, progress) as move:
            for i, (place, logits) in enumerate(decode_tiles(codec, z, tile, wraps)):
                inside = [_within(p, m * codec.factor, n) for p, m, n in zip(place, margin, shape, strict=True)]
                if all(b > a for _, (a, b) in inside):
                    yield [at for _, at in inside], _finite(logits)[0][:, *(cut for cut, _ in inside)].float().cpu()
                move(i + 1)

    # --- requests -----------------------------------------------------------------------------------------------
    def condition(self, targets: Targets, n: int = 1, strict: bool = False) -> Condition:
        """The condition of a request, as the networks see it."""
        return self.model.scaler.condition(self._values(targets, n, strict))

    def _values(self, targets: Targets, n: int, strict: bool) -> Tensor:
        """(N, A) values that the data have, NaN where open."""
        if targets is not None and not isinstance(targets, Mapping):
            listed = np.atleast_1d(np.asarray(targets, dtype=float)).tolist()
            if not listed:
                raise InvalidArgument(f"{self.names[0]} is empty; ask for at least one structure")
            targets = {self.names[0]: listed if len(listed) > 1 else listed[0]}
        targets = {k if k in self.names else attribute_name(k): given for k, given in (targets or {}).items()}
        for name, given in targets.items():
            _check_bounds(name, np.atleast_1d(np.asarray(given, dtype=float)))
        values = self.model.scaler.requested(targets, n)
        near, distance = self.model.scaler.nearest_feasible(values)
        far = [i for i, d in enumerate(distance.tolist()) if d > 0]
        if far:
            one, other = self._named(values[far[0]]), self._named(near[far[0]])
            more = f" (and {len(far) - 1} more requests)" if len(far) > 1 else ""
            text = f"{one} is outside of what the training data have; the nearest that they have is {other}{more}"
            if strict:
                raise InvalidArgument(text)
            warnings.warn(text + "; that is asked for instead", UserWarning, stacklevel=3)
        return near

    def _requested(self, values: Tensor) -> dict[str, float]:
        return {f"requested_{k}": float(v) for k, v in zip(self.names, values, strict=True) if v == v}

    def _named(self, values: Tensor) -> str:
        return ", ".join(f"{k}={v:.4g}" for k, v in zip(self.names, values.tolist(), strict=True) if v == v)

    # --- boxes --------------------------------------------------------------------------------------------------
    def _box(
        self, shape: Sequence[int] | None, periodic: Sequence[bool] | None
    ) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...], tuple[int, ...]]:
        """(voxels, periodic axes, latent cells, cells of margin at each end that are cut off)."""
        codec, own = self.model.autoencoder, self.model.autoencoder.periodic
        shape = tuple(int(k) for k in (shape or self.model.shape))
        if len(shape) != 3 or min(shape) < 1:
            raise InvalidArgument(f"shape must be three positive sizes (X, Y, Z), got {shape}")
        asked = tuple(bool(p) for p in (own if periodic is None else periodic))
        if len(asked) != 3:
            raise InvalidArgument(f"periodic must say True or False for each of 3 axes, got {periodic!r}")
        film = self.model.facts.get("boundary") == "film"
        if film and asked[2]:
            raise InvalidArgument("the model makes films, with walls at both ends of z; periodic[2] must be False")
        multiple = codec.factor * getattr(getattr(self.model.denoiser, "backbone", None), "factor", 1)
        cells, margin = [], []
        for axis, (size, p, has) in enumerate(zip(shape, asked, own, strict=True)):
            if size % multiple:
                raise InvalidArgument(f"shape {shape} must be multiples of {multiple} voxels; choose another")
            if p and not has and size // codec.factor <= WINDOW + 2 * HALO:
                need = (WINDOW + 2 * HALO + 1) * codec.factor
                raise InvalidArgument(
                    f"the model was trained on volumes that do not repeat along axis {axis}; to make one that does, "
                    f"windows must wrap around it, which takes at least {need} voxels, got {size}"
                )
            step = multiple // codec.factor
            m = 0 if p or not has else math.ceil((codec.receptive_field + 2) / step) * step
            cells.append(size // codec.factor + 2 * m)
            margin.append(m)
        return shape, asked, tuple(cells), tuple(margin)

    def _size(self, spacing: Sequence[float] | None, unit: str | None) -> tuple[Sequence[float], str]:
        """Spacing and unit: those asked for, or of the training data."""
        facts = self.model.facts
        asked = spacing or facts.get("spacing", (1.0, 1.0, 1.0))
        if len(asked) != 3 or not all(0 < d < math.inf for d in asked):
            raise InvalidArgument(f"spacing must be three positive lengths (dx, dy, dz), got {tuple(asked)}")
        return tuple(float(d) for d in asked), unit or facts.get("unit", "voxel")

    def _device(self) -> torch.device:
        return next((p.device for p in self.model.denoiser.parameters()), torch.device("cpu"))

    def _denoiser(
        self,
        values: Tensor,
        guidance_scale: float,
        predictor_guidance: bool,
        guide: Callable[[Denoiser], Denoiser] | None,
        cells: Sequence[int],
        periodic: Sequence[bool],
        window: int | None,
    ) -> Denoiser:
        denoiser = self.model.denoiser
        own = self.model.autoencoder.periodic
        wraps = tuple(p or has for p, has in zip(periodic, own, strict=True))
        if window is not None or math.prod(cells) > WHOLE_CELLS or wraps != tuple(own):
            multiple = getattr(getattr(denoiser, "backbone", None), "factor", 1)
            window = WINDOW if window is None else window
            denoiser = Windowed(denoiser, (window,) * 3, min(HALO, max(window // 2, 1)), wraps, multiple)
        if guide is not None:
            return guide(denoiser)
        if not bool(values.isfinite().any()):
            return denoiser
        denoiser = ClassifierFree(denoiser, guidance_scale)
        guided = predictor_guidance and math.prod(cells) <= GUIDED_CELLS
        return self._predicted(denoiser, values) if guided else denoiser

    def _predicted(self, denoiser: Denoiser, values: Tensor) -> Denoiser:
        """The denoiser, corrected by the predictor in the descriptors that are asked for."""
        predictor, predicted = self.model.predictor, self.model.predicted
        if predictor is None or predicted is None:
            return denoiser
        asked = torch.full((len(values), len(predicted.names)), float("nan"), dtype=torch.float64)
        for a, name in enumerate(self.names):
            if name in predicted.names and name in DESCRIPTORS:
                asked[:, predicted.names.index(name)] = values[:, a]
        return Predicted(denoiser, predictor, predicted.scores(asked).to(self._device()), GUIDED_KAPPA)

    def _decode(self, z: Tensor, periodic: Sequence[bool], margin: Sequence[int], progress: bool) -> Tensor:
        """Logits (1, K, X, Y, Z) on the CPU, without the margin."""
        codec = self.model.autoencoder
        f = codec.factor
        voxels = [n * f for n in z.shape[2:]]
        wraps = tuple(p or has for p, has in zip(periodic, codec.periodic, strict=True))
        with torch.no_grad():
            if math.prod(voxels) <= WHOLE_VOXELS and wraps == tuple(codec.periodic):
                logits = _finite(codec.decode_stage_2_outputs(z)).cpu()
            else:
                logits = torch.empty(1, codec.phases, *voxels)
                total = math.prod(math.ceil(n / TILE) for n in z.shape[2:])
                with bar("decoding", total, progress) as move:
                    for i, (place, part) in enumerate(decode_tiles(codec, z, TILE, wraps)):
                        logits[:, :, *place] = _finite(part).cpu()
                        move(i + 1)
        return logits[:, :, *(slice(m * f, n - m * f) for m, n in zip(margin, voxels, strict=True))]

    # --- structures ---------------------------------------------------------------------------------------------
    def _structure(
        self,
        logits: Tensor,
        about: dict[str, Any],
        match_fraction: bool,
        spacing: Sequence[float],
        unit: str,
        periodic: Sequence[bool],
    ) -> Microstructure:
        values = logits.float().numpy()
        if match_fraction:
            shifts = matching_shifts(values, requested_shares(about, len(values)))
            about |= {f"logit_shift_{k}": float(b) for k, b in enumerate(shifts)}
            values = values + shifts[:, None, None, None]
        if len(values) == 2:
            field = (values[1] - values[0]) / 2
            return Microstructure.from_field(field, spacing=spacing, unit=unit, periodic=periodic, attributes=about)
        labels = values.argmax(0).astype(np.uint8)
        return Microstructure(labels, tuple(spacing), unit, tuple(periodic), about)  # type: ignore[arg-type]

    def _measurable(self, values: Tensor) -> list[str]:
        """What is asked for, of any row, and can be measured."""
        asked = [k for k, column in zip(self.names, values.T, strict=True) if bool(column.isfinite().any())]
        return [k for k in asked if k in DESCRIPTORS or k == "volume_fraction"]

    def _measured(self, made: list[Microstructure], values: Tensor) -> list[Microstructure]:
        """The structures with what was asked for measured."""
        if self.names == ("volume_fraction",):
            return [ms.with_attributes(volume_fraction=float(ms.labels.mean())) for ms in made]
        found = measure_all(made, self._measurable(values))
        return [ms.with_attributes(**{k: float(v[i]) for k, v in found.items()}) for i, ms in enumerate(made)]

    def _miss(self, ms: Microstructure) -> float:
        """Squared distance of what was measured from what was asked for, in standard deviations of the data."""
        facts = ms.attributes
        return sum(
            ((facts[name] - facts[f"requested_{name}"]) / std) ** 2
            for name, std in zip(self.names, self.model.scaler.spread, strict=True)
            if name in facts and f"requested_{name}" in facts
        )


def attribute_name(name: str) -> str:
    """The name of a descriptor with its phase as a number, or that of another attribute as it is."""
    try:
        return canonical(name)
    except InvalidArgument:
        return name  # of a process, or of the files


def _check_bounds(name: str, given: np.ndarray) -> None:
    """Refuse what no structure can have."""
    descriptor = DESCRIPTORS.get("vf_1" if name == "volume_fraction" else attribute_name(name))
    if descriptor is None:
        return
    for value in given:
        if not descriptor.low <= value <= descriptor.high:  # NaN, too
            hint = "; 45 % is 0.45" if descriptor.high == 1 else ""
            raise InvalidArgument(f"{name} must lie in [{descriptor.low:g}, {descriptor.high:g}], got {value:g}{hint}")


def _finite(logits: Tensor) -> Tensor:
    """Logits that are numbers; the label of NaN would look like any other."""
    if not bool(torch.isfinite(logits).all()):
        raise SamplingDiverged(
            "the decoder gave NaN or infinite values; take guidance_scale nearer to 1 or more steps, or train again "
            "with a lower lr"
        )
    return logits


def _within(place: slice, margin: int, size: int) -> tuple[slice, tuple[int, int]]:
    """The part of a tile that is inside of a margin: (cut of the tile, (first, last + 1) in the volume)."""
    a, b = max(place.start, margin), min(place.stop, margin + size)
    return slice(a - place.start, max(b - place.start, 0)), (a - margin, b - margin)
