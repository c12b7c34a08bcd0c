"""``fit``: train a denoiser and give back the average weights, with progress, logs, checkpoints and resumption."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from .. import hub
from ..condition import Condition
from ..discrete import TokenDenoiser, TokenObjective
from ..errors import CheckpointError, InvalidArgument, TrainingDiverged, require
from .module import DiffusionModule
from .objective import DenoisingObjective, Objective
from .state import SafetensorsIO, read_state

__all__ = ["fit"]

STATE = "training.safetensors"

D = TypeVar("D", bound=nn.Module)


def fit(
    denoiser: D,
    data: Tensor | Dataset[Any] | DataLoader[Any],
    *,
    cond: Condition | None = None,
    val: Tensor | Dataset[Any] | DataLoader[Any] | None = None,
    val_cond: Condition | None = None,
    steps: int = 1000,
    batch_size: int = 64,
    lr: float = 1e-3,
    lr_schedule: Literal["cosine", "constant"] = "cosine",
    weight_decay: float = 0.0,
    objective: Objective | None = None,
    ema_decay: float = 0.999,
    grad_clip: float = 1.0,
    out: str | Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = True,
    checkpoint_every: int = 500,
    val_every: int = 500,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: str = "auto",
    precision: Any = "32-true",
    num_workers: int = 0,
    logs: Sequence[Literal["csv", "tensorboard"]] = ("csv",),
    progress: bool = True,
) -> D:
    """Train a denoiser.

    Args:
        denoiser: the model, a ``NetworkDenoiser`` or a ``TokenDenoiser``; trained in place.
        data: (N, *event), or tokens (N, L); or a Dataset whose items are a Tensor, (Tensor, Condition of one row), or
            (Tensor, Condition or None, weight), or whose ``__getitems__`` gives such batches; or a DataLoader of them.
        cond: condition of N rows, when ``data`` is a tensor.
        val, val_cond: the same, for the validation loss.
        steps: number of optimiser steps.
        batch_size: per device.
        lr, lr_schedule, weight_decay, ema_decay, grad_clip: see ``DiffusionModule``; the norm of gradients is clipped.
        objective: default ``DenoisingObjective()``, and ``TokenObjective()`` for a ``TokenDenoiser``.
        out: folder for logs, the training state (every ``checkpoint_every`` steps) and at the end the checkpoint that
            ``suffuse.hub.load`` reads. None keeps everything in memory.
        metadata: JSON-able facts saved with the checkpoint.
        resume: go on from the state found in ``out``, which must be of these settings and this data (what a Dataset
            or a DataLoader holds is not compared); only ``steps`` and ``ema_decay`` may change, to train for longer.
            With False start afresh.
        val_every: steps between validations.
        seed: of data order, times, noise and condition dropout.
        accelerator, devices, strategy, precision: Lightning's; with ``devices=2, strategy="ddp"`` on two GPUs.
        num_workers: of the DataLoader.
        logs: ``"csv"``, ``"tensorboard"`` (extra ``tensorboard``), both or none; written to ``out``.
        progress: show a progress bar.

    Returns:
        the denoiser with the average weights, in evaluation mode, on the CPU.

    Raises:
        InvalidArgument: empty data, NaN, sizes that do not match, or ``out`` holding a run with other settings or data.
        TrainingDiverged: when the loss is not finite; the last state before that is kept.
    """
    if steps < 1 or batch_size < 1:
        raise InvalidArgument(f"steps and batch_size must be at least 1, got steps={steps}, batch_size={batch_size}")
    if objective is None:
        objective = TokenObjective() if isinstance(denoiser, TokenDenoiser) else DenoisingObjective()
    floating = isinstance(objective, DenoisingObjective)
    dataset = _dataset(data, cond, "data", floating)
    folder = None if out is None else Path(out)
    settings = {
        # a model that cannot be saved is refused here, before the work, and only where it is to be saved
        "model": None if folder is None else hub.describe(denoiser),
        "objective": repr(objective), "batch_size": batch_size,
        "lr": lr, "lr_schedule": lr_schedule, "weight_decay": weight_decay, "seed": seed,
        "samples": len(dataset) if hasattr(dataset, "__len__") else None,
        "data": None if folder is None or not isinstance(dataset, _Rows) else dataset.fingerprint(),
    }  # fmt: skip
    module = DiffusionModule(
        denoiser, objective, lr=lr, lr_schedule=lr_schedule, weight_decay=weight_decay, ema_decay=ema_decay, seed=seed
    )
    start, state = _resume(folder, settings, steps, resume)
    if state is not None and start >= steps:
        return hub.load(folder, "cpu")  # type: ignore[arg-type, return-value]

    def loader(source: Any, order: Sampler[list[int]] | None, shuffle: bool = False) -> DataLoader[Any]:
        if isinstance(source, DataLoader):
            return source
        if order is not None:
            return DataLoader(source, batch_sampler=order, collate_fn=_collate, num_workers=num_workers)
        return DataLoader(source, batch_size=batch_size, shuffle=shuffle, collate_fn=_collate)

    order = None
    if not isinstance(dataset, DataLoader):
        order = _Order(len(dataset), batch_size, steps, seed, start)
    callbacks: list[Callback] = [_Guard(folder, settings, checkpoint_every)]
    if progress:
        callbacks.append(_Bar())
    with _quiet():
        trainer = Trainer(
            max_steps=steps, accelerator=accelerator, devices=devices, strategy=strategy, precision=precision,
            gradient_clip_val=grad_clip, callbacks=callbacks, logger=_loggers(folder, logs),
            enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
            use_distributed_sampler=isinstance(dataset, DataLoader), plugins=[SafetensorsIO()],
            log_every_n_steps=10, num_sanity_val_steps=0, check_val_every_n_epoch=None,
            val_check_interval=None if val is None else val_every, default_root_dir=folder,
        )  # fmt: skip
        val_loader = None if val is None else loader(_dataset(val, val_cond, "val", floating), None)
        trainer.fit(module, loader(dataset, order), val_loader, ckpt_path=state)
    if trainer.interrupted or trainer.global_step < steps:
        kept = f"; its state is in {folder}" if folder else ""
        raise KeyboardInterrupt(f"training was interrupted at step {trainer.global_step} of {steps}{kept}")
    trained: D = module.ema.model.cpu()  # type: ignore[assignment]
    if folder is not None and trainer.is_global_zero:
        hub.save(trained, folder, metadata)
    return trained


# --- data -------------------------------------------------------------------------------------------------------


class _Rows(Dataset[Any]):
    """A tensor and a condition of as many rows, fetched a batch at a time."""

    def __init__(self, x: Tensor, cond: Condition | None) -> None:
        self.x, self.cond = x, cond

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, rows: list[int]) -> Any:
        index = torch.as_tensor(rows)
        return self.x[index] if self.cond is None else (self.x[index], self.cond[index])

    def fingerprint(self) -> dict[str, Any]:
        """A few numbers of the data and of each condition, by which other data are told from these."""
        values = {"data": self.x} if self.cond is None else {"data": self.x, **self.cond.values}
        return {name: _fingerprint(value) for name, value in values.items()}


def _fingerprint(x: Tensor, rows: int = 8) -> dict[str, Any]:
    """Shape and mean of x (N, ...), and root mean square and one projection of some rows.

    Data that were normalised alike still differ in their rows.
    """
    signs = 2 * torch.randint(2, x.shape[1:], generator=torch.Generator().manual_seed(0)) - 1
    numbers = [float(x.detach().mean(dtype=torch.float64))]
    for k in torch.linspace(0, len(x) - 1, min(rows, len(x))).long().tolist():
        row = x[k].detach().cpu().double()
        numbers += [float(row.square().mean()) ** 0.5, float((signs * row).sum()) / max(row.numel(), 1) ** 0.5]
    return {"shape": list(x.shape), "numbers": numbers}


class _Order(Sampler[list[int]]):
    """The rows of each step: one permutation after another, cut into batches, as a function of (seed, step) alone."""

    def __init__(self, n: int, batch_size: int, steps: int, seed: int, start: int = 0) -> None:
        self.n, self.batch_size, self.steps, self.seed, self.start = n, batch_size, steps, seed, start

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        on = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if on else (0, 1)
        shuffled: dict[int, Tensor] = {}
        for step in range(self.start, self.steps):
            first = (step * world + rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                epoch, row = divmod(position, self.n)
                if epoch not in shuffled:
                    shuffled = {k: v for k, v in shuffled.items() if k == epoch - 1}
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    shuffled[epoch] = torch.randperm(self.n, generator=generator)
                batch.append(int(shuffled[epoch][row]))
            yield batch


def _dataset(data: Any, cond: Condition | None, name: str, floating: bool) -> Any:
    """Checked data: a DataLoader as it is, a Dataset, or a tensor as rows; ``floating`` if tokens cannot be meant."""
    if isinstance(data, DataLoader):
        if cond is not None:
            raise InvalidArgument(f"cond goes with a tensor; a DataLoader given as {name} must yield (x, Condition)")
        return data
    if isinstance(data, Tensor):
        if len(data) == 0:
            raise InvalidArgument(f"{name} is empty; give at least one sample (N, *event)")
        if floating and not data.is_floating_point():
            raise InvalidArgument(f"{name} must be floating point, got {data.dtype}; scale it to variance about one")
        if not bool(torch.isfinite(data).all()):
            raise InvalidArgument(f"{name} has NaN or infinite values; impute them, or give weights through a Dataset")
        if cond is not None:
            cond.expect(len(data))
            for key, value in cond.values.items():
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    raise InvalidArgument(f"cond[{key!r}] has NaN or infinite values; mask what is not known")
        return _Rows(data, cond)
    if cond is not None:
        raise InvalidArgument(f"cond goes with a tensor; a Dataset given as {name} must yield (x, Condition)")
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InvalidArgument(f"{name} must be a Tensor, a Dataset with a length, or a DataLoader, got {type(data)}")
    if len(data) == 0:
        raise InvalidArgument(f"{name} is empty; give at least one sample")
    return data


def _collate(items: Any) -> Any:
    """A batch of items; what ``__getitems__`` of a dataset gave may be one already."""
    if not isinstance(items, list):
        return items
    if isinstance(items[0], Tensor):
        return torch.stack(items)
    columns = list(zip(*items, strict=True))
    x = torch.stack(columns[0])
    cond = None if columns[1][0] is None else Condition.cat(columns[1])
    return (x, cond) if len(columns) == 2 else (x, cond, torch.stack(columns[2]))


# --- state ------------------------------------------------------------------------------------------------------


def _resume(folder: Path | None, settings: dict[str, Any], steps: int, resume: bool) -> tuple[int, str | None]:
    """The step to go on from, and the file of the state; removes an old state when not resuming."""
    if folder is None:
        return 0, None
    file = folder / STATE
    if not resume:
        file.unlink(missing_ok=True)
        return 0, None
    if not file.is_file():
        return 0, None
    found = read_state(file)
    old = found.get("suffuse_settings", {})
    again = "choose another out, or remove that folder to start afresh (resume=False does it)"
    changed = [line for k, v in settings.items() if k in old and k != "data" for line in _changes(old[k], v, k)]
    if changed:
        raise InvalidArgument(
            f"out={str(folder)!r} holds a run with other settings ({'; '.join(changed)[:400]}); {again}"
        )
    if old.get("data") and settings["data"] and not _same_data(old["data"], settings["data"]):
        raise InvalidArgument(f"out={str(folder)!r} holds a run on other data; {again}")
    done = int(found["global_step"])
    if done >= steps and not (folder / hub.CONFIG).is_file():
        raise CheckpointError(f"out={str(folder)!r} is at step {done} but has no checkpoint; {again}")
    return done, str(file)


FLOAT = re.compile(r"-?\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)")
#: Where a function lies in memory, which is another place in each process.
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def _alike(old: Any, new: Any) -> bool:
    """Whether two values read the same, but for the last digits of numbers that are not whole.

    Those depend on the number of threads and on the device: the standard deviation of the data is part of a model.
    """
    one, two = (ADDRESS.sub("", repr(value)) for value in (old, new))
    if one == two:
        return True
    pairs = zip(map(float, FLOAT.findall(one)), map(float, FLOAT.findall(two)), strict=False)
    close = all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7) for a, b in pairs)
    return close and FLOAT.sub("#", one) == FLOAT.sub("#", two)


def _changes(old: Any, new: Any, name: str) -> list[str]:
    """What is no longer the same, by the path of its name."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for k in {**old, **new} for line in _changes(old.get(k), new.get(k), f"{name}.{k}")]
    return [] if _alike(old, new) else [f"{name}: {old!r} then, {new!r} now"]


def _same_data(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two fingerprints are of the same data: latents, say, that another device encoded in other roundings."""
    if {name: v["shape"] for name, v in old.items()} != {name: v["shape"] for name, v in new.items()}:
        return False
    for name, value in new.items():
        limit = 0.01 * max(map(abs, value["numbers"]))
        if any(abs(a - b) > limit for a, b in zip(old[name]["numbers"], value["numbers"], strict=True)):
            return False
    return True


class _Guard(Callback):
    """Writes the state now and then, and stops a run whose loss is no longer finite before that state is spoilt."""

    def __init__(self, folder: Path | None, settings: dict[str, Any], every: int, look_every: int = 25) -> None:
        self.folder, self.settings, self.every, self.look_every = folder, settings, every, look_every
        self.saved: int | None = None

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["suffuse_settings"] = self.settings

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.finite = torch.ones((), dtype=torch.bool, device=module.device)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.finite &= torch.isfinite(outputs["loss"])  # stays on the device; read back only now and then
        step = trainer.global_step
        last, save = step >= trainer.max_steps, self.folder is not None and step % self.every == 0
        if (last or save or step % self.look_every == 0) and not bool(self.finite):
            kept = f"; the state of step {self.saved} is in {self.folder}" if self.saved is not None else ""
            raise TrainingDiverged(
                f"the loss became NaN or infinite by step {step}{kept}; lower lr (now {module.lr}), check the data's "
                f"scale, or use precision='32-true'"
            )
        if self.folder is not None and (last or save):
            trainer.save_checkpoint(self.folder / STATE)
            self.saved = step


class _Bar(Callback):
    """One line for the whole run: step, loss, time left."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"), transient=True, disable=not trainer.is_global_zero,
        )  # fmt: skip
        self.task = self.progress.add_task("", total=trainer.max_steps, loss="")
        self.progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % 10 == 0:
            shown = {k: float(v) for k, v in trainer.callback_metrics.items()}
            text = "  ".join(f"{k} {v:.4g}" for k, v in shown.items())
            self.progress.update(self.task, completed=trainer.global_step, loss=text)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if hasattr(self, "progress"):
            self.progress.stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "fit")


def _loggers(folder: Path | None, logs: Sequence[str]) -> list[Logger] | bool:
    if wrong := set(logs) - {"csv", "tensorboard"}:
        raise InvalidArgument(f"logs must name 'csv' or 'tensorboard', got {sorted(wrong)}")
    if folder is None:
        return False
    made: list[Logger] = []
    if "csv" in logs:
        made.append(CSVLogger(folder, name="logs", version=""))
    if "tensorboard" in logs:
        require("tensorboard", extra="tensorboard")
        made.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's hardware summary, tips, and advice on workers would bury the library's own messages."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels: list[tuple[Callable[[int], None], int]] = []
    for name in names:
        logger = logging.getLogger(name)
        levels.append((logger.setLevel, logger.level))
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*(many workers|isinstance.treespec|LeafSpec|litlogger).*")
        try:
            yield
        finally:
            for restore, level in levels:
                restore(level)
