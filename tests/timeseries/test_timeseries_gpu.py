"""On a GPU everything stays there: training, forecasts, refinement, synthesis, with features and several variates."""

import numpy as np
import pandas as pd
import pytest
import torch

from suffuse_timeseries import RefinedPredictor, TSDiffEstimator, TSDiffPredictor, representative_time
from suffuse_timeseries.baselines import RidgePredictor
from suffuse_timeseries.synthesis import synthetic_windows

H, CONTEXT = 6, 24


def series(shape, n=4, future=0):
    rng = np.random.default_rng(0)
    return [
        {
            "start": pd.Period("2020-01-01", "D"),
            "target": (1 + rng.random((*shape, 90))).astype(np.float32),
            "item_id": str(i),
            "feat_dynamic_real": rng.random((2, 90 + future)),
            "feat_static_cat": [i % 2],
        }
        for i in range(n)
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(), (3,)], ids=["univariate", "multivariate"])
def test_a_whole_life_on_a_gpu(tmp_path, shape):
    trainer = {
        "max_epochs": 1, "accelerator": "gpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    estimator = TSDiffEstimator(
        "D", H, CONTEXT, lags_seq=[7], target_dim=3 if shape else 1, num_feat_dynamic_real=2, num_feat_static_cat=1,
        cardinality=[2], width=16, state=8, batch_size=16, num_batches_per_epoch=10, trainer_kwargs=trainer,
    )  # fmt: skip
    train, ahead = series(shape), series(shape, future=H)
    estimator.train(train).serialize(tmp_path / "model")
    model = TSDiffPredictor.deserialize(tmp_path / "model", device="cuda")
    assert next(model.prediction_net.parameters()).is_cuda
    for method in ("cond", "ms", "q"):
        for forecast in model.using(method=method, steps=4).predict(ahead, num_samples=8):
            assert np.isfinite(forecast.samples).all()
    time = representative_time(model, train, windows=32, levels=10, progress=False)
    if not shape:
        refined = RefinedPredictor(RidgePredictor.fit(train, H, CONTEXT), model, time)
        assert all(np.isfinite(f.samples).all() for f in refined.predict(ahead, num_samples=8))
    assert synthetic_windows(model.using(steps=4), 10, progress=False).shape == (10, *shape, CONTEXT + H)
    assert torch.cuda.memory_allocated() > 0
