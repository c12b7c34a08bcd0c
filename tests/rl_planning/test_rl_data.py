"""Episodes, windows and scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_rl_planning.collect import collect
from suffuse_rl_planning.data import Episodes, Normaliser, Scale

ENV = "HalfCheetah-v5"


def arrays(*lengths: int):
    """Episodes whose first observation counts the steps, 1000 apart, and whose speed is the step in the episode."""
    steps = [np.arange(n) for n in lengths]
    observations = np.zeros((sum(lengths), 17), np.float32)
    observations[:, 0] = np.concatenate([1000 * e + s for e, s in enumerate(steps)])
    observations[:, 8] = np.concatenate(steps)
    ends = np.concatenate([s == n - 1 for s, n in zip(steps, lengths, strict=True)])
    return observations, np.zeros((sum(lengths), 6), np.float32), ends


def test_reading_a_minari_dataset_keeps_every_step(recorded, episodes):
    assert len(episodes) == 8 and episodes.env_id == ENV and episodes.name == "tests/halfcheetah/small-v0"
    for e, episode in enumerate(recorded):
        at = slice(episodes.offsets[e], episodes.offsets[e + 1])
        np.testing.assert_allclose(episodes.observations[at], episode.observations[:-1], rtol=1e-6)
        np.testing.assert_allclose(episodes.actions[at], episode.actions, rtol=1e-6)
        np.testing.assert_allclose(episodes.behaviour["speed"][at], episode.infos["speed"][1:], rtol=1e-5, atol=1e-6)


def test_splits_are_disjoint_by_controller():
    dataset = collect("tests/halfcheetah/split-v0", episodes=30, steps=5, switch=0.0)
    train, test = (Episodes.from_minari(dataset, split=s) for s in ("train", "test"))
    assert len(train) + len(test) == 30 and len(test) > 0
    by = {m["split"]: set() for m in dataset.storage.get_episode_metadata(range(30))}
    for m in dataset.storage.get_episode_metadata(range(30)):
        by[m["split"]].update(m["controllers"])
    assert not by["train"] & by["test"]


def test_windows_never_cross_an_episode():
    windows = Episodes.from_arrays(ENV, *arrays(10, 3, 7)).windows(4)
    first = windows.trajectories[:, :, 0]
    assert len(windows) == 7 + 0 + 4
    assert (first.diff(dim=1) == 1).all()
    assert (first[:, 0].long() == 1000 * windows.episode + windows.start).all()


def test_a_time_limit_ends_an_episode_as_a_fall_does():
    observations, actions, ends = arrays(5, 5)
    nothing = np.zeros_like(ends)
    for terminals, timeouts in ((ends, nothing), (nothing, ends)):
        assert len(Episodes.from_arrays(ENV, observations, actions, terminals, timeouts).windows(4)) == 4


def test_behaviour_is_the_mean_from_the_start_of_the_window():
    data = Episodes.from_arrays(ENV, *arrays(10))
    short, long = data.windows(3).behaviour["speed"], data.windows(3, measure=6).behaviour["speed"]
    assert short.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert long.tolist() == [2.5, 3.5, 4.5, 5.5, 6.5, 6.5, 6.5, 6.5]  # the last windows are judged by the last 6 steps
    assert data.windows(3, measure=99).behaviour["speed"].tolist() == [4.5] * 8


def test_a_stride_thins_the_windows():
    assert Episodes.from_arrays(ENV, *arrays(10)).windows(4, stride=3).start.tolist() == [0, 3, 6]


def test_normaliser_round_trip(episodes):
    x = torch.from_numpy(episodes.observations)
    x = torch.cat([x, torch.full((len(x), 1), 3.0)], 1)  # a constant channel
    normaliser = Normaliser.fit(x)
    z = normaliser(x)
    assert torch.allclose(z[:, :-1].std(0, correction=0), torch.ones(17), atol=1e-3) and (z[:, -1] == 0).all()
    assert torch.allclose(normaliser.inverse(z), x, atol=1e-4)
    again = Normaliser.from_config(normaliser.to_config())
    assert torch.equal(again(x), z)


def test_a_scale_maps_the_data_to_the_unit_interval():
    scale = Scale.fit(torch.linspace(-2, 4, 601))
    u = scale(torch.tensor([-9.0, scale.low, 1.0, scale.high, 9.0]))
    assert u.tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)
    with pytest.raises(InvalidArgument, match="nothing can be requested"):
        Scale.fit(torch.ones(10))


def spoil(what, values):
    observations, actions, ends = arrays(6)
    parts = {"observations": observations, "actions": actions}
    parts[what] = values(parts[what])
    return lambda: Episodes.from_arrays(ENV, parts["observations"], parts["actions"], ends)


def nan_at(step):
    def put(x):
        x[step, 2] = np.nan
        return x

    return put


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (spoil("observations", nan_at(4)), "observations of dataset 'arrays' holds NaN or infinity, first at step 4"),
        (spoil("actions", nan_at(1)), "actions of dataset 'arrays' holds NaN"),
        (spoil("observations", lambda x: x[:, :11]), r"must be \(steps, 17\) for HalfCheetah-v5, got \(6, 11\)"),
        (spoil("actions", lambda x: x[:4]), "actions of dataset 'arrays' has 4 of 6 steps"),
        (lambda: Episodes.from_arrays(ENV, np.zeros((0, 17)), np.zeros((0, 6)), np.zeros(0)), "is empty"),
        (lambda: Episodes.from_arrays(ENV, *arrays(5, 6)).windows(8), r"longer than every episode.*longest has 6"),
        (lambda: Episodes.from_arrays(ENV, *arrays(5)).windows(1), "horizon must be at least 2"),
        (lambda: Episodes.from_arrays(ENV, *arrays(9)).windows(4, measure=2), "measure at least the horizon"),
        (lambda: Episodes.from_arrays(ENV, *arrays(9)).windows(4, names=("sped",)), "did you mean 'speed'"),
        (lambda: Episodes.from_arrays(ENV, *arrays(9)).windows(4, names=()), "behaviours is empty"),
        (lambda: Episodes.from_minari("nobody/nothing-v0"), "not among the local Minari datasets"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_a_split_without_episodes_is_an_empty_dataset(recorded):
    with pytest.raises(InvalidArgument, match="is empty"):
        Episodes.from_minari(recorded, split="validation")


@pytest.mark.data
def test_published_expert_runs_are_read():
    """HalfCheetah-v4 experts in D4RL's layout: two runs of 1000 steps, fast."""
    from suffuse.data import data_root

    root = data_root()
    if root is None or not (root / "rl" / "mujoco_expert").is_dir():
        pytest.skip("SUFFUSE_DATA has no rl/mujoco_expert")
    d = np.load(root / "rl" / "mujoco_expert" / "HalfCheetah-v4_expert.npz")
    data = Episodes.from_arrays(ENV, d["observations"], d["actions"], d["terminals"], d["timeouts"])
    windows = data.windows(16)
    assert len(data) == 2 and len(windows) == 2 * (1000 - 15) and windows.behaviour["speed"].median() > 3


# --- files of others ------------------------------------------------------------------------------------------------


def test_episodes_survive_d4rls_layout(episodes, tmp_path):
    again = Episodes.from_hdf5(episodes.to_hdf5(tmp_path / "cheetah.hdf5"), "HalfCheetah-v5")
    np.testing.assert_array_equal(again.offsets, episodes.offsets)
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(again, name), getattr(episodes, name))
    np.testing.assert_array_equal(again.states[0], episodes.states[0])


def test_aligndiffs_behaviours_are_read_episode_by_episode(episodes, tmp_path):
    import h5py

    with h5py.File(tmp_path / "walker.hdf5", "w") as file:
        file["observations"] = episodes.observations.reshape(8, 60, 17)
        file["actions"] = episodes.actions.reshape(8, 60, 6)
    again = Episodes.from_hdf5(tmp_path / "walker.hdf5", "HalfCheetah-v5")
    np.testing.assert_array_equal(again.offsets, episodes.offsets)
    assert again.rewards is None and again.states is None


def test_files_that_hold_no_behaviour_are_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["something"] = np.zeros(3)
    with pytest.raises(InvalidArgument, match=r"x.hdf5 has \['something'\]; it needs observations and actions"):
        Episodes.from_hdf5(tmp_path / "x.hdf5", "HalfCheetah-v5")
    with pytest.raises(InvalidArgument, match="is not a file"):
        Episodes.from_hdf5(tmp_path / "y.hdf5", "HalfCheetah-v5")


def test_selected_episodes_keep_everything(episodes):
    two = episodes.select([5, 1])
    assert two.offsets.tolist() == [0, 60, 120]
    np.testing.assert_array_equal(two.observations[:60], episodes.observations[300:360])
    np.testing.assert_array_equal(two.states[1][60:], episodes.states[1][60:120])
    with pytest.raises(InvalidArgument, match="select at least one"):
        episodes.select([])
