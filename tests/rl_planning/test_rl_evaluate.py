"""Judging: known values of the score, honest segments, monotone maps, and step responses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_rl_planning import BehaviourCloning, envs, evaluate, metrics
from suffuse_rl_planning.attributes import Attributes, StrengthEnsemble
from suffuse_rl_planning.baselines import Constant
from suffuse_rl_planning.collect import CPG, controllers
from suffuse_rl_planning.collect.dataset import measured_controllers
from suffuse_rl_planning.data import Scale
from suffuse_rl_planning.evaluate import MatchingTests, MeasureMap, judge, measured_errors
from suffuse_rl_planning.evaluate.covering import map_distance
from suffuse_rl_planning.evaluate.matching import Judgement
from suffuse_rl_planning.evaluate.switching import analyse, running_mean

ENV = "HalfCheetah-v5"


@pytest.mark.parametrize(
    ("error", "area"),
    [
        (0, 0.99), (0.005, 0.95), (0.01, 0.91), (0.02, 0.76), (0.05, 0.58), (0.1, 0.45), (0.2, 0.32), (0.3, 0.24),
        (0.5, 0.14), (0.9, 0.03),
    ],
)  # fmt: skip
def test_the_area_of_a_constant_error(error, area):
    """Computed from the thresholds of AlignDiff's code."""
    assert metrics.area(np.full(7, error)) == pytest.approx(area, abs=0.0051)


@pytest.mark.parametrize(("k", "floor", "middle"), [(2, 0.281, 0.321), (3, 0.269, 0.313), (4, 0.260, 0.303)])
def test_chance_levels_of_the_area(k, floor, middle):
    generator = np.random.default_rng(0)
    v, mask = generator.random((20000, k)), generator.random((20000, k)) < 0.5
    mask[~mask.any(1), 0] = True
    for got, expected in ((generator.random((20000, k)), floor), (np.full((20000, k), 0.5), middle)):
        errors = (np.abs(v - got) * mask).sum(1) / mask.sum(1)
        assert metrics.area(errors) == pytest.approx(expected, abs=0.006)


def test_segments_are_named_for_what_they_are():
    judgement = Judgement(np.array([[0.3, 0.1, 0.2], [0.1, 0.4, 0.7]]))
    assert judgement.of("first").tolist() == [0.3, 0.1] and judgement.of("best-of-3").tolist() == [0.1, 0.1]
    np.testing.assert_allclose(judgement.of("mean"), [0.2, 0.4])
    with pytest.raises(InvalidArgument, match="unknown segments 'best'"):
        judgement.of("best")


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = metrics.interval(generator.random(60), np.mean, draws=300)
        hits += low <= 0.5 <= high
    assert 0.88 <= hits / 200 <= 0.99


# --- matching -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attributes(episodes):
    """A model whose first strength is the mean forward velocity, exactly."""

    class Speed(torch.nn.Module):
        def forward(self, observations):
            return torch.stack([observations[..., 8].mean(1), observations[..., 0].mean(1)], 1)

    model = StrengthEnsemble(("speed", "height"), [0.0] * 17, [1.0] * 17, members=1, width=8)
    model.members = torch.nn.ModuleList([Speed()])
    out = Attributes(model, env_id=ENV)
    out.relabel(episodes, episodes.windows(20))
    return out


@pytest.fixture(scope="module")
def tests(attributes, episodes):
    return evaluate.draw_tests(attributes, episodes, n=40, length=20, seed=5)


@pytest.fixture(scope="module")
def result(tests, episodes):
    return evaluate.run_tests(Constant.middling(episodes), tests, env_id=ENV, segment=20, seed=0)


def test_every_test_asks_for_something_and_starts_in_the_dataset(tests, episodes):
    assert tests.mask.any(1).all() and 0.3 < tests.mask.mean() < 0.8
    assert np.isnan(tests.requests()["speed"]).tolist() == (~tests.mask[:, 0]).tolist()
    known = {tuple(row) for row in episodes.states[0].tolist()}
    assert {tuple(row) for row in tests.start[0].tolist()} <= known


def test_joint_targets_are_strengths_of_the_dataset(attributes, episodes):
    drawn = evaluate.draw_tests(attributes, episodes, n=60, law="dataset_joint", length=20, seed=5)
    stretch = [attributes(torch.from_numpy(episodes.observations[s : s + 20])[None])[0].numpy() for s in range(0, 40)]
    assert drawn.targets.min() >= 0 and drawn.targets.max() <= 1
    near = np.abs(drawn.targets[:, None] - np.stack(stretch)[None]).max(-1).min(1)
    assert (near < 0.05).mean() > 0.05  # some come from the first episode
    with pytest.raises(InvalidArgument, match="unknown law of targets 'unform'; did you mean 'uniform'"):
        evaluate.draw_tests(attributes, episodes, law="unform")


def test_hoppers_trade_speed_for_height(episodes):
    model = StrengthEnsemble(("speed", "jump"), [0.0] * 11, [1.0] * 11, members=1, width=8)
    zeros = np.zeros((90, 11), np.float32)
    hopper = dataclasses.replace(
        episodes, env_id="Hopper-v5", observations=zeros, actions=zeros[:, :3], offsets=np.array([0, 90]), behaviour={},
        rewards=None, states=(zeros[:, :6], zeros[:, :6]),
    )  # fmt: skip
    drawn = evaluate.draw_tests(Attributes(model, env_id="Hopper-v5"), hopper, n=50, seed=0)
    assert (np.abs(drawn.targets.sum(1) - 1) <= 0.15 + 1e-9).all()


def test_the_judge_measures_each_segment(result, tests, attributes):
    judged = judge(result, tests, attributes)
    assert judged.errors.shape == (40, 3)
    v = attributes(torch.from_numpy(result.observations[:, 20:40]).float()).numpy()
    expected = (np.abs(v - tests.targets) * tests.mask).sum(1) / tests.mask.sum(1)
    np.testing.assert_allclose(judged.errors[:, 1], expected, atol=1e-6)


def test_a_robot_that_falls_errs_by_one_from_there_on(result, tests, attributes, episodes):
    length = np.full(40, 60)
    length[:2] = 15, 45
    fallen = dataclasses.replace(result, length=length)
    judged = judge(fallen, tests, attributes)
    maps = MeasureMap.fit(attributes, episodes, n=200, length=20)
    measured, details = measured_errors(fallen, tests, maps)
    for errors in (judged.errors, measured.errors):
        assert (errors[0] == 1).all() and errors[1, 2] == 1 and (errors[1, :2] < 1).all() and (errors[2:] < 1).any()
    assert 0 not in details["speed"]["test"]


def test_measured_error_is_zero_where_the_request_is_what_was_done(result, attributes, episodes):
    """Ask in hindsight: with targets that map to what each test did, the mean segment has no error."""
    maps = {name: u for name, u in MeasureMap.fit(attributes, episodes, n=400, length=20).items() if name == "speed"}
    did = result.behaviour("speed", 0, 20)
    u = maps["speed"]
    inside = (did > u.values[0]) & (did < u.values[-1])
    targets = np.interp(did, u.values + 1e-9 * np.arange(len(u.values)), u.strengths)
    hindsight = MatchingTests(
        ("speed", "height"),
        np.stack([targets, targets], 1),
        np.tile([True, False], (40, 1)),
        result_start(result),
        "uniform",
    )
    judged, _ = measured_errors(result, hindsight, maps)
    assert judged.errors[inside, 0].max() < 0.02


def result_start(result):
    return result.qpos[:, 0], result.qvel[:, 0]


def test_a_measure_map_is_monotone_and_recovers_a_monotone_law():
    generator = np.random.default_rng(0)
    v = generator.random(4000)
    u = MeasureMap.of(v, v**2 + 0.05 * generator.standard_normal(4000))
    x = np.linspace(0.05, 0.95, 50)
    assert (np.diff(u(x)) >= 0).all() and np.abs(u(x) - x**2).max() < 0.05


def test_the_best_recording_answers_what_was_recorded(attributes, episodes, tests):
    """Asked for what stretches of the data have, the data has it; more stretches are never further away."""
    maps = MeasureMap.fit(attributes, episodes, n=200, length=20)
    few, many = (evaluate.best_recorded(episodes, tests, maps, n=n, length=20)[0] for n in (1, 400))
    assert many.of("mean").mean() < 0.5 * few.of("mean").mean()
    hindsight = evaluate.draw_tests(attributes, episodes, n=8, law="dataset_joint", length=20)
    judged, details = evaluate.best_recorded(episodes, hindsight, maps, n=2000, length=20)
    assert judged.errors.shape == (8, 1) and np.median(judged.errors) < 0.05
    assert all(len(d["error"]) == len(d["achieved"]) == len(d["test"]) for d in details.values())


# --- switching and covering -----------------------------------------------------------------------------------------


def test_the_step_response_of_a_first_order_lag_is_analysed():
    """tau = 10 steps towards levels 0 and 1: it settles within 5% at tau ln 20, without overshoot."""
    every, tau = 200, 10.0
    t = np.arange(every)
    trace = np.concatenate([np.zeros(every), 1 - np.exp(-(t + 1) / tau)])[None]
    scale = MeasureMap(np.array([0, 1]), np.array([0, 1]), 0.0, 1.0, 1.0)
    found = analyse(trace, np.array([0.0, 0.8]), scale, every)
    assert found["settling"][0].tolist() == pytest.approx([0, tau * np.log(20)], abs=2)
    assert found["steady"][0] == pytest.approx([0.0, 0.2], abs=1e-3)
    assert found["overshoot"][0] == pytest.approx([0.0, 0.0], abs=1e-3)


def test_overshoot_is_seen_from_where_it_came():
    up = np.concatenate([np.zeros(100), np.full(10, 1.3), np.full(90, 1.0)])[None]
    scale = MeasureMap(np.array([0, 1]), np.array([0, 1]), 0.0, 2.0, 1.0)
    for trace, asked in ((up, [0.0, 1.0]), (-up, [0.0, -1.0])):
        found = analyse(trace, np.array(asked), scale, 100)
        assert found["overshoot"][0, 1] == pytest.approx(0.15) and found["settling"][0, 1] == 10


def test_a_running_mean_looks_back_only():
    series = np.arange(6.0)[None]
    np.testing.assert_allclose(running_mean(series, 3), [[0, 0.5, 1, 2, 3, 4]])


def test_switching_asks_phase_by_phase(windows, attributes, episodes):
    policy = BehaviourCloning.fit(
        windows, env_id=ENV, steps=5, scales={name: Scale(0.0, 1.0) for name in ("speed", "height")}
    )
    asked = []
    request = policy.request
    policy.request = lambda **r: (asked.append(r["speed"]), request(**r))[1]
    maps = MeasureMap.fit(attributes, episodes, n=100, length=20)
    found = evaluate.switch(policy, maps, env_id=ENV, schedules={"speed": (0.2, 0.8, 0.5)}, every=4, n=2, smooth=2)
    assert asked == [0.2] * 4 + [0.8] * 4 + [0.5] * 4
    assert found["speed"].settling.shape == (2, 3) and found["speed"].together.shape == (3,)
    one = evaluate.switch(policy, maps, env_id=ENV, schedules={"speed": (0.2, 0.8)}, every=4, n=1, smooth=2)["speed"]
    np.testing.assert_array_equal(one.together, one.settling[0])  # the mean over one episode is that episode
    with pytest.raises(InvalidArgument, match="of equal length and of measurable behaviours"):
        evaluate.switch(policy, maps, env_id=ENV, schedules={"energy": (0.2,)}, every=4)


def test_a_policy_that_cannot_be_asked_keeps_its_own_schedule(attributes, episodes):
    """Recorded gaits that change at the same times are what the data can do: the ceiling of switching."""
    maps = MeasureMap.fit(attributes, episodes, n=100, length=20)
    wanted = {"speed": np.array([-1.0, 2.0])}
    chosen = evaluate.nearest(ENV, wanted)
    pool = controllers(ENV)[chosen]
    assert np.abs(measured_controllers(ENV)["speed"][chosen] - wanted["speed"]).max() < 0.1
    gaits = CPG(envs.robot(ENV), pool[None], envs.control_step(ENV), at=np.array([[60]]))
    found = evaluate.switch(gaits, maps, env_id=ENV, schedules={"speed": (0.2, 0.8)}, every=60, n=1, smooth=20)
    trace = found["speed"].trace[0]
    assert trace[59] < -0.5 and trace[119] > 1.5


def test_maps_that_agree_have_no_distance():
    generator = np.random.default_rng(0)
    v = generator.random(5000)
    u = v + 0.1 * generator.standard_normal(5000)
    assert map_distance((v, u), (v, u)) == 0
    assert map_distance((v[:2500], u[:2500]), (v[2500:], u[2500:])) < 0.15
    assert map_distance((v, u), (v, generator.permutation(u))) > 0.35
    assert map_distance((v, u), (v, u + 5)) == pytest.approx(1.0)


def test_a_sweep_of_a_deaf_policy_covers_nothing(episodes, attributes, windows):
    policy = BehaviourCloning.fit(
        windows, env_id=ENV, steps=5, dropout=1.0, scales={name: Scale(0.0, 1.0) for name in ("speed", "height")}
    )
    maps = {"speed": MeasureMap.fit(attributes, episodes, n=100, length=20)["speed"]}
    found = evaluate.cover(policy, attributes, maps, episodes, n=12, steps=20, settle=5)["speed"]
    assert abs(found.spearman) < 0.75 and found.strengths.tolist() == np.linspace(0, 1, 12).tolist()
    assert found.deviation > 0.1 and 0 < found.distance <= 1


def test_walkers_do_not_terminate_but_are_seen_fallen():
    robot = envs.robot("Walker2d-v5")
    standing = np.zeros(17)
    standing[0] = 1.2
    lying = standing.copy()
    lying[0] = 0.3
    assert not robot.fallen(standing) and robot.fallen(lying)


def test_an_empty_mask_is_refused(tests):
    with pytest.raises(InvalidArgument, match="test 3 asks for nothing: its mask is empty"):
        mask = tests.mask.copy()
        mask[3] = False
        dataclasses.replace(tests, mask=mask)
    with pytest.raises(InvalidArgument, match=r"targets must lie in \[0, 1\]"):
        dataclasses.replace(tests, targets=tests.targets + 1)


# --- people ---------------------------------------------------------------------------------------------------------


def test_a_study_is_scored_by_the_order_of_strengths(windows, tmp_path):
    policy = BehaviourCloning.fit(
        windows, env_id=ENV, steps=5, scales={name: Scale(0.0, 1.0) for name in ("speed", "height")}
    )
    page = evaluate.prepare_study(
        tmp_path, {"cloning": policy}, ("speed",), n=3, steps=6, settle=2, backend="stick", seed=1
    )
    assert "cloning" not in page.read_text() and len(list((tmp_path / "clips").glob("*.gif"))) == 9
    key = json.loads((tmp_path / "key.json").read_text())
    right = [np.argsort(q["strengths"]).tolist() for q in key]
    for orders, share in ((right, 1.0), ([right[0], right[1][::-1], None], 0.5)):
        (tmp_path / "ann.json").write_text(json.dumps({"annotator": "ann", "orders": orders}))
        assert evaluate.score_study(tmp_path, [tmp_path / "ann.json"])["cloning", "speed"]["sorted"] == share
    simulated = json.loads(evaluate.simulated_answers(tmp_path, tmp_path / "s.json", noise=0.0).read_text())
    assert simulated["orders"] == [np.argsort(q["measured"]).tolist() for q in key]
    (tmp_path / "bob.json").write_text(json.dumps({"annotator": "bob", "orders": []}))
    with pytest.raises(InvalidArgument, match="does not answer the 3 questions"):
        evaluate.score_study(tmp_path, [tmp_path / "bob.json"])
