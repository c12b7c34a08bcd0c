"""Scaling and lags: what a window keeps, and what it must not see."""

import pytest
import torch

from suffuse_timeseries.tsdiff.windows import lagged, location_and_scale, window

CONTEXT, HORIZON, LAGS = 8, 4, (3, 10)
PAST = CONTEXT + max(LAGS)


def cut(past, observed, *future, **more):
    return window(
        past, observed, *future, context_length=CONTEXT, prediction_length=HORIZON, lags=LAGS, **more
    )  # fmt: skip


def batch():
    torch.manual_seed(0)
    return torch.rand(5, PAST) + 0.5, (torch.rand(5, PAST) > 0.3).float()


@pytest.mark.parametrize("scaling", ["mean", "std"])
def test_the_window_does_not_depend_on_the_unit(scaling):
    past, observed = batch()
    one, other = (cut(c * past, observed, scaling=scaling) for c in (1.0, 1000.0))
    torch.testing.assert_close(one.values, other.values)
    torch.testing.assert_close(other.scale, 1000 * one.scale)
    torch.testing.assert_close(other.loc, 1000 * one.loc)


def test_what_is_missing_is_never_read():
    past, observed = batch()
    junk = torch.where(observed > 0, past, torch.nan)
    for scaling in ("mean", "std", None):
        one, other = cut(past, observed, scaling=scaling), cut(junk, observed, scaling=scaling)
        for name in ("values", "known", "loc", "scale"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_the_mean_scale_is_that_of_the_observed_context():
    past, observed = batch()
    _, scale = location_and_scale(past, observed, CONTEXT, "mean", 1.0)
    for row in range(5):
        seen = past[row, -CONTEXT:][observed[row, -CONTEXT:] > 0]
        torch.testing.assert_close(scale[row, 0], seen.abs().mean())


def test_a_lag_is_known_in_the_horizon_as_far_as_it_reaches_back():
    past, _ = batch()
    w = cut(past, torch.ones_like(past))
    assert w.values.shape == (5, 1 + len(LAGS), CONTEXT + HORIZON)
    assert w.known[:, :, :CONTEXT].all()
    assert not w.known[:, 0, CONTEXT:].any()
    assert w.known[0, 1, CONTEXT:].tolist() == [1, 1, 1, 0]  # lag 3 reaches three steps ahead
    assert w.known[:, 2].all()  # lag 10 covers the horizon of 4
    torch.testing.assert_close(w.values[:, 1, CONTEXT : CONTEXT + 3], (past / w.scale)[:, -3:])


def test_standardised_lags_of_a_rising_series_stay_in_the_unit_of_the_series():
    """In the unit of the context, they would be -10 / 8 and more of its range below it."""
    past = torch.arange(float(PAST)).expand(2, -1) ** 2
    w = cut(past, torch.ones_like(past), scaling="std")
    context = w.values[..., :CONTEXT]
    torch.testing.assert_close(context.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(context.square().mean(-1), torch.ones(2, 3))
    torch.testing.assert_close(w.loc + w.scale * context[:, 0], past[:, -CONTEXT:])


def test_lagged_shifts():
    series = torch.arange(10.0)[None]
    assert lagged(series, (2,), 4)[0].tolist() == [[6, 7, 8, 9], [4, 5, 6, 7]]


def test_training_windows_see_the_future_as_observed_but_not_as_known():
    past, observed = batch()
    future = torch.rand(5, HORIZON)
    seen = torch.ones(5, HORIZON)
    seen[:, 1] = 0
    w = cut(past, observed, future, seen)
    assert w.observed[:, 0, CONTEXT:].tolist() == seen.tolist()
    assert not w.known[:, 0, CONTEXT:].any()
    assert (w.values[:, 0, CONTEXT + 1] == 0).all()


@pytest.mark.parametrize("scaling", ["mean", "std"])
@pytest.mark.parametrize(
    ("past", "observed", "expected"),
    [
        (torch.zeros(1, PAST), torch.ones(1, PAST), 7.0),  # all zero: the scale of the training data
        (torch.ones(1, PAST), torch.zeros(1, PAST), 7.0),  # nothing observed: the same
    ],
    ids=["zeros", "missing"],
)
def test_a_context_without_a_scale_gets_that_of_the_data(past, observed, expected, scaling):
    w = cut(past, observed, 5 * torch.ones(1, HORIZON), torch.ones(1, HORIZON), scaling=scaling, default_scale=7.0)
    assert w.scale.item() == expected and w.loc.item() == 0
    assert w.values.abs().max() < 1


def test_a_zero_context_after_an_active_past_gets_the_scale_of_the_past():
    past = torch.cat([3 * torch.ones(1, PAST - CONTEXT), torch.zeros(1, CONTEXT)], dim=1)
    assert cut(past, torch.ones_like(past)).scale.item() == pytest.approx(3 * (PAST - CONTEXT) / PAST)


def test_a_constant_series_standardises_to_zero():
    past = 20 * torch.ones(1, PAST)
    w = cut(past, torch.ones_like(past), scaling="std")
    assert w.loc.item() == 20 and w.scale.item() == 20 and not w.values.any()


def test_a_burst_after_almost_nothing_counts_as_missing():
    past = torch.full((1, PAST), 1e-6)
    w = cut(past, torch.ones_like(past), 5 * torch.ones(1, HORIZON), torch.ones(1, HORIZON))
    assert not w.observed[:, 0, CONTEXT:].any() and not w.values[:, 0, CONTEXT:].any()
