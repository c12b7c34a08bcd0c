"""Answers by rule and by people, and the files they are kept in."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from suffuse.errors import InvalidArgument
from suffuse_rl_planning import behaviours
from suffuse_rl_planning.preferences import (
    Preferences,
    agreement,
    consistency,
    label,
    prepare,
    read_answers,
    stretches,
)

NAMES = ("speed", "height")


def differences(episodes, n, length, seed, name):
    first = stretches(episodes, 2 * n, length, seed=seed)
    measure = behaviours.over(name, episodes.behaviour, first, first + length, episodes.dt)
    return np.diff(measure.reshape(n, 2), axis=1)[:, 0], np.subtract(*np.quantile(measure, [0.75, 0.25]))


def test_sure_answers_follow_the_measure_and_near_ones_are_ties(episodes):
    answers = label(episodes, NAMES, n=300, length=20, margin=0.1, seed=4)
    for k, name in enumerate(NAMES):
        change, spread = differences(episodes, 300, 20, 4, name)
        tie = np.abs(change) < 0.1 * spread
        assert 0 < tie.mean() < 0.5
        np.testing.assert_array_equal(answers.pref[:, k], np.where(tie, 0, np.sign(change)))


def test_noise_turns_the_share_of_answers_that_it_says(episodes):
    sure, noisy = (label(episodes, NAMES, n=2000, length=20, seed=4, noise_rate=p) for p in (0.0, 0.25))
    decided = sure.pref != 0
    assert (noisy.pref != sure.pref)[decided].mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(noisy.pref == 0, sure.pref == 0)


def test_doubt_follows_bradley_and_terry(episodes):
    """Among pairs of nearly equal difference d, the second wins with probability sigmoid(d / (T s))."""
    answers = label(episodes, ("speed",), n=6000, length=20, temperature=0.5, margin=0.0, seed=1)
    change, spread = differences(episodes, 6000, 20, 1, "speed")
    logit = change / (0.5 * spread)
    for low, high in ((0.5, 1.0), (1.0, 2.0)):
        inside = (logit > low) & (logit < high)
        expected = (1 / (1 + np.exp(-logit[inside]))).mean()
        assert (answers.pref[inside, 0] == 1).mean() == pytest.approx(expected, abs=0.06)


def test_stretches_cross_no_end_of_an_episode(episodes):
    first = stretches(episodes, 500, 25, seed=0)
    episode = np.searchsorted(episodes.offsets, first, side="right") - 1
    assert (first + 25 <= episodes.offsets[episode + 1]).all()


def test_preferences_survive_aligndiffs_file_layout(episodes, tmp_path):
    answers = label(episodes, NAMES, n=12, length=10, seed=0)
    again = Preferences.from_hdf5(answers.to_hdf5(tmp_path / "cheetah_syn_train.hdf5"))
    assert again.attributes == NAMES and list(again.annotator) == ["rule"] * 12
    np.testing.assert_array_equal(again.pref, answers.pref)
    np.testing.assert_array_equal(again.observations, answers.observations.astype(np.float32))
    with h5py.File(tmp_path / "cheetah_syn_train.hdf5") as file:
        assert {"obs1", "act1", "obs2", "act2", "pref"} <= set(file)
        assert file["obs2"].shape == (12, 10, 17) and file["act1"].shape == (12, 10, 6)
        np.testing.assert_array_equal(file["obs2"], again.observations[:, 1])


def test_a_file_of_others_needs_names(episodes, tmp_path):
    path = label(episodes, NAMES, n=5, length=10).to_hdf5(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        del file.attrs["attributes"], file.attrs["annotator"]
    with pytest.raises(InvalidArgument, match="does not name its 2 attributes"):
        Preferences.from_hdf5(path)
    assert Preferences.from_hdf5(path, ("a", "b")).attributes == ("a", "b")


def test_answers_are_one_for_the_second(episodes):
    answers = label(episodes, ("speed",), n=50, length=20, seed=0)
    np.testing.assert_array_equal(answers.answers()[:, 0].numpy(), (answers.pref[:, 0] + 1) / 2)


def sheet(folder, who, choose):
    """Fill in a session as a person would who looks at the clips: ``choose(left clip, right clip)``."""
    session = json.loads((folder / "session.json").read_text())
    answers = [
        {"trial": i, "attribute": a, "answer": choose(t["left"], t["right"])}
        for i, t in enumerate(session["trials"])
        for a in session["attributes"]
    ]
    path = folder / f"answers-{who}.json"
    path.write_text(json.dumps({"annotator": who, "answers": answers}))
    return path


@pytest.fixture(scope="module")
def session(episodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("session")
    prepare(folder, episodes, ("speed", "humanness"), n=8, length=6, repeat=0.5, backend="stick", every=3, seed=2)
    return folder


def test_a_session_is_a_page_with_clips(session):
    page = (session / "index.html").read_text()
    assert "Which one moves more like a person?" in page and len(list((session / "clips").glob("*.gif"))) == 16
    trials = json.loads((session / "session.json").read_text())["trials"]
    assert len(trials) == 12 and len({t["left"] < t["right"] for t in trials}) == 2  # sides are shuffled
    for again in trials[8:]:
        first = trials[again["pair"]]
        assert (again["left"], again["right"]) == (first["right"], first["left"])


def test_what_people_saw_on_the_left_is_undone(session):
    """Who always prefers the clip of the lower number prefers the first of every pair, wherever it was shown."""
    path = sheet(session, "ann", lambda left, right: "left" if left < right else "right")
    answers, records = read_answers(session, [path])
    assert (answers.pref == -1).all() and len(answers) == 8 and set(answers.annotator) == {"ann"}
    assert consistency(records) == 1.0
    assert np.isnan(agreement(records))


def test_who_always_says_left_is_inconsistent(session):
    files = [sheet(session, "ann", lambda left, right: "left" if left < right else "right")]
    files.append(sheet(session, "bob", lambda left, right: "left"))
    answers, records = read_answers(session, files)
    assert len(answers) == 16
    assert consistency([r for r in records if r["annotator"] == "bob"]) == 0.0
    shown_first = [t["left"] < t["right"] for t in json.loads((session / "session.json").read_text())["trials"][:8]]
    assert agreement(records) == pytest.approx(np.mean(shown_first))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, d: label(e, ()), "behaviours is empty"),
        (lambda e, d: label(e, ("sped",)), "unknown behaviour 'sped'"),
        (lambda e, d: label(e, ("speed",), length=61), "longer than every episode"),
        (lambda e, d: label(e, ("speed",), noise_rate=2.0), "noise_rate must lie in"),
        (lambda e, d: label(e, ("speed",), n=10, length=5).split(0.01), "leaves one of the parts empty"),
        (lambda e, d: Preferences.from_hdf5(d / "none.hdf5"), "is not a file"),
        (lambda e, d: read_answers(d, []), "holds no session.json"),
    ],
)
def test_bad_input(episodes, tmp_path, call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(episodes, tmp_path)


def test_an_answer_sheet_of_another_session_is_refused(session, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps({"annotator": "eve", "answers": [{"trial": 99, "attribute": "speed", "answer": "left"}]})
    )
    with pytest.raises(InvalidArgument, match="not an answer sheet of this session"):
        read_answers(session, [path])
