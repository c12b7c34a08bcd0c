"""What can be trained by name: ``suffuse train timeseries/tsdiff --dataset elnino``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from suffuse.errors import InvalidArgument
from suffuse.hub import read_config
from suffuse.recipes import recipe

from .quiet import quiet

if TYPE_CHECKING:
    import torch

__all__ = ["RECIPES", "tsdiff"]


@quiet()
def sample(
    checkpoint: Path,
    *,
    out: Path,
    task: Literal["forecast", "synthesize"] = "forecast",
    dataset: str | None = None,
    n: int = 100,
    method: Literal["cond", "ms", "q"] | None = None,
    sampler: str = "dpmpp-2m",
    steps: int = 20,
    guidance_scale: float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Forecast the test windows of a dataset, or synthesize windows.

    Writes ``forecasts.csv`` (item_id, timestamp, mean and the quantiles 0.1 to 0.9, one row per step) with the fan plot
    ``forecasts.png``; or ``synthetic.jsonl`` (a GluonTS dataset of windows in scaled space) with ``synthetic.png``.

    Args:
        checkpoint: a folder that ``train`` wrote.
        out: folder of the files.
        task: what to draw.
        dataset: the dataset whose test windows are forecast; default the one trained on.
        n: sample paths per forecast, or windows to synthesize.
        method: cond, ms or q, see ``suffuse_timeseries.tsdiff``; default cond, or q for a purely unconditional model.
        sampler: ddpm, ddim, euler, heun or dpmpp-2m.
        steps: of the sampler.
        guidance_scale: of ms and q; by default none is needed, see ``suffuse_timeseries.tsdiff.Forecasting``.
        seed: of all random draws.
        device: cpu, cuda, mps or auto.
    """
    import lightning.pytorch as pl

    from .tsdiff import TSDiffPredictor

    facts = read_config(checkpoint).get("metadata", {})
    predictor = TSDiffPredictor.deserialize(checkpoint, device=resolve(device))
    wanted = {"method": method, "sampler": sampler, "steps": steps, "guidance_scale": guidance_scale}
    predictor = predictor.using(**{name: value for name, value in wanted.items() if value is not None})
    out.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(seed, verbose=False)
    if task == "synthesize":
        return write_synthetic(predictor, n, facts.get("freq", "D"), out)
    if task != "forecast":
        raise InvalidArgument(f"task must be 'forecast' or 'synthesize', got {task!r}")
    return write_forecasts(predictor, dataset or facts.get("dataset", "elnino"), n, out)


@recipe("timeseries/tsdiff", sample=sample)
@quiet()
def tsdiff(
    *,
    dataset: str = "elnino",
    out: Path = Path("runs/tsdiff"),
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    context_length: int | None = None,
    scaling: Literal["mean", "std"] | None = None,
    condition_dropout: float = 0.5,
    width: int | None = None,
    depth: int | None = None,
    state: int | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """A TSDiff forecaster on a panel of series, for GluonTS. What is not given is the dataset's preset.

    Args:
        dataset: elnino, co2 or sunspots (bundled), a dataset below SUFFUSE_DATA such as m4_hourly, or a folder. The
            eight datasets of the paper have its settings.
        out: folder of the checkpoint, which is a serialized GluonTS predictor and a suffuse checkpoint in one.
        steps: optimiser steps.
        batch_size: windows per step.
        lr: learning rate at the start; it falls to zero along a cosine.
        context_length: steps of a window before the horizon.
        scaling: mean or std.
        condition_dropout: share of windows without condition; 1 is the paper's unconditional model.
        width: channels of the network.
        depth: residual blocks.
        state: states of each S4D filter.
        seed: of all random draws.
        device: cpu, cuda, mps or auto.
        progress: show a progress bar.
    """
    import lightning.pytorch as pl

    from .data import load
    from .presets import preset

    chosen = preset(dataset)
    steps = chosen.steps if steps is None else steps
    if steps < 1:
        raise InvalidArgument(f"steps must be at least 1, got {steps}")
    data = load(dataset)
    pl.seed_everything(seed, verbose=False)
    settings: dict[str, Any] = {
        "context_length": context_length,
        "scaling": scaling,
        "width": width,
        "depth": depth,
        "state": state,
        "lr": lr,
        "batch_size": batch_size,
    }
    epoch = min(steps, 100)
    estimator = chosen.estimator(
        data.metadata.freq,
        data.metadata.prediction_length,
        condition_dropout=condition_dropout,
        num_batches_per_epoch=epoch,
        trainer_kwargs=trainer_kwargs(out / "training", steps, epoch, device, progress),
        **{name: value for name, value in settings.items() if value is not None},
    )
    predictor = estimator.train(list(data.train))
    predictor.serialize(
        out,
        metadata={
            "recipe": tsdiff.name,
            "dataset": dataset,
            "freq": data.metadata.freq,
            "prediction_length": data.metadata.prediction_length,
            "steps": steps,
            "seed": seed,
        },
    )
    return out


def trainer_kwargs(folder: Path, steps: int, epoch: int, device: str, progress: bool) -> dict[str, Any]:
    """Lightning's arguments for ``steps`` steps in epochs of ``epoch``, with CSV logs and checkpoints in a folder."""
    from lightning.pytorch.loggers import CSVLogger

    return {
        "max_epochs": -(-steps // epoch),
        "max_steps": steps,
        "accelerator": {"cuda": "gpu"}.get(device.split(":")[0], device.split(":")[0]),
        "devices": 1,
        "default_root_dir": folder,
        "logger": CSVLogger(folder, name=None),
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        "log_every_n_steps": epoch,
    }


def resolve(device: str) -> torch.device:
    """``auto`` is the accelerator if there is one."""
    from gluonts.torch.util import resolve_device

    return resolve_device(device)


def write_forecasts(predictor: Any, dataset: str, n: int, out: Path) -> list[Path]:
    import pandas as pd
    from gluonts.evaluation import make_evaluation_predictions

    from .data import load
    from .metrics import QUANTILES
    from .plots import fans

    test = list(load(dataset).test)
    forecasts = list(make_evaluation_predictions(test, predictor, num_samples=n)[0])
    frames = [
        pd.DataFrame(
            {
                "item_id": forecast.item_id,
                "timestamp": forecast.index.to_timestamp(),
                "mean": forecast.mean,
                **{str(q): forecast.quantile(q) for q in QUANTILES},
            }
        )
        for forecast in forecasts
    ]
    table, picture = out / "forecasts.csv", out / "forecasts.png"
    pd.concat(frames).to_csv(table, index=False)
    shown = slice(-3, None)
    history = 4 * predictor.prediction_length
    fans([("forecast", forecasts[shown])], test[shown], history=history).savefig(picture, dpi=130)
    return [table, picture]


def write_synthetic(predictor: Any, n: int, freq: str, out: Path) -> list[Path]:
    import json

    from matplotlib.figure import Figure

    windows = predictor.prediction_net.synthesize(n).cpu().numpy()
    table, picture = out / "synthetic.jsonl", out / "synthetic.png"
    with table.open("w") as file:
        for i, window in enumerate(windows):
            entry = {"item_id": str(i), "start": "2000-01-01", "target": [round(float(v), 6) for v in window]}
            file.write(json.dumps(entry) + "\n")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    for axes, window in zip(figure.subplots(3, 3, sharex=True).flat, windows, strict=False):
        axes.plot(window, linewidth=0.9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    figure.suptitle(f"synthetic windows, in units of the context's scale (freq {freq})", fontsize=10)
    figure.savefig(picture, dpi=130)
    return [table, picture]


RECIPES = (tsdiff,)
