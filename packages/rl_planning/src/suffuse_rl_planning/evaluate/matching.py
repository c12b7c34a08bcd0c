"""Matching: random requests from random states, judged segment by segment.

A test draws strengths v in [0, 1]^k and a mask m, starts from a state of the dataset, and runs three segments. A judge
gives each segment its strengths v_hat, and

    error = sum_i m_i |v_hat_i - v_i| / sum_i m_i,        area = mean over thresholds of P(error < threshold).

The published numbers take the best segment of a test so far, and the judge that chose the plan. Here segments are named
("first", "mean", "best-of-3"), and so are judges: "own" chose the plan, "independent" learned from other pairs with
another seed, and "measured" is no model: strengths become physical units by a map that is monotone on the dataset, and
the error is |measured - mapped request| over the range of the dataset. A robot that falls errs by 1 from there on.
Dong et al. (2024), "AlignDiff", arXiv:2310.02054, section 5; the protocol is that of its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from suffuse.errors import InvalidArgument, unknown

from .. import behaviours
from ..attributes import Attributes
from ..data import Episodes
from ..envs import Array, Policy, Rollout, rollout
from ..preferences import stretches
from ..requests import Commanded

LAWS = ("uniform", "dataset_joint")
SEGMENTS = ("first", "mean", "best-of-3")


@dataclass(frozen=True)
class MatchingTests:
    """n requests and where they start.

    Attributes:
        attributes: k names.
        targets: (n, k) in [0, 1].
        mask: (n, k) bool, at least one in every row.
        start: qpos (n, nq) and qvel (n, nv).
        law: how targets were drawn.
    """

    attributes: tuple[str, ...]
    targets: Array
    mask: Array
    start: tuple[Array, Array]
    law: str

    def __post_init__(self) -> None:
        shape = (len(self.targets), len(self.attributes))
        if self.targets.shape != shape or self.mask.shape != shape or 0 in shape:
            raise InvalidArgument(
                f"targets and mask must be (n, {shape[1]}), got {self.targets.shape}, {self.mask.shape}"
            )
        if not self.mask.any(1).all():
            raise InvalidArgument(f"test {int(np.argmin(self.mask.any(1)))} asks for nothing: its mask is empty")
        if not (np.isfinite(self.targets) & (self.targets >= 0) & (self.targets <= 1)).all():
            raise InvalidArgument("targets must lie in [0, 1]")

    def __len__(self) -> int:
        return len(self.targets)

    def requests(self) -> dict[str, Array]:
        """name -> (n,), NaN where nothing is asked."""
        asked = np.where(self.mask, self.targets, np.nan).astype(np.float32)
        return dict(zip(self.attributes, asked.T, strict=True))


def start_states(episodes: Episodes, n: int, *, seed: int) -> tuple[Array, Array]:
    """Random states (qpos, qvel) of a dataset, (n, .) each."""
    if episodes.states is None:
        raise InvalidArgument(f"dataset {episodes.name!r} has no qpos and qvel to start from; collect it anew")
    rows = np.random.default_rng(seed).integers(len(episodes.observations), size=n)
    return episodes.states[0][rows], episodes.states[1][rows]


def draw_tests(
    attributes: Attributes, episodes: Episodes, *, n: int = 100, law: str = "uniform", length: int = 50, seed: int = 0
) -> MatchingTests:
    """Requests and starts.

    Args:
        attributes: the model whose strengths are requested.
        episodes: the dataset to start from, preferably episodes that nobody was trained on.
        n: tests.
        law: "uniform" (which asks for the impossible, too), or "dataset_joint": the strengths of a random stretch.
        length: steps of such a stretch.
        seed: of everything.
    """
    if law not in LAWS:
        raise unknown("law of targets", law, LAWS)
    generator = np.random.default_rng(seed)
    k = len(attributes.names)
    targets = generator.random((n, k))
    if law == "dataset_joint":
        first = stretches(episodes, n, length, seed=seed + 1)
        observations = torch.from_numpy(episodes.observations[first[:, None] + np.arange(length)])
        targets = attributes(observations).numpy()
    elif episodes.env_id == "Hopper-v5" and attributes.names[:2] == ("speed", "jump"):  # one costs the other
        targets[:, 1] = np.clip(1 - targets[:, 0] + generator.uniform(-0.15, 0.15, n), 0, 1)
    mask = generator.random((n, k)) < 0.5
    while (empty := ~mask.any(1)).any():
        mask[empty] = generator.random((int(empty.sum()), k)) < 0.5
    return MatchingTests(attributes.names, targets, mask, start_states(episodes, n, seed=seed + 2), law)


def run_tests(
    policy: Policy, tests: MatchingTests, *, env_id: str, segment: int = 50, segments: int = 3, seed: int = 0
) -> Rollout:
    """What a policy does in all tests at once."""
    if isinstance(policy, Commanded) and policy.scales:
        policy.request(**tests.requests())
    return rollout(policy, env_id=env_id, n=len(tests), steps=segment * segments, start=tests.start, seed=seed)


@dataclass(frozen=True)
class Judgement:
    """Errors in [0, 1] of n tests.

    Attributes:
        errors: (n, segments).
    """

    errors: Array

    def of(self, segments: str) -> Array:
        """(n,) errors by the name of the segments, see ``SEGMENTS``."""
        if segments not in SEGMENTS:
            raise unknown("segments", segments, SEGMENTS)
        choose = {"first": self.errors[:, 0], "mean": self.errors.mean(1), "best-of-3": self.errors.min(1)}
        return cast(Array, choose[segments])


def complete(result: Rollout, segments: int) -> Array:
    """Whether a robot was still up at the end of each segment: (n, segments)."""
    segment = result.actions.shape[1] // segments
    return cast(Array, result.length[:, None] >= segment * (1 + np.arange(segments)))


def judge(result: Rollout, tests: MatchingTests, attributes: Attributes, *, segments: int = 3) -> Judgement:
    """By an attribute model, whose scale says what strengths of 0 and 1 are."""
    if attributes.names != tests.attributes:
        raise InvalidArgument(f"the judge knows {attributes.names}, the tests ask for {tests.attributes}")
    segment = result.actions.shape[1] // segments
    seen = result.observations[:, : segment * segments].reshape(len(result), segments, segment, -1)
    strengths = attributes(torch.from_numpy(seen).float()).numpy()
    wrong = np.abs(strengths - tests.targets[:, None]) * tests.mask[:, None]
    errors = wrong.sum(2) / tests.mask.sum(1)[:, None]
    return Judgement(np.where(complete(result, segments), errors, 1.0))


@dataclass(frozen=True)
class MeasureMap:
    """From strengths to physical units, u*(v): the monotone function that fits a dataset best (isotonic regression).

    Attributes:
        strengths, values: (N,) increasing, and what they map to.
        low, high: 1st and 99th percentile of the measure in the dataset.
        std: its standard deviation.
    """

    strengths: Array
    values: Array
    low: float
    high: float
    std: float

    @classmethod
    def fit(
        cls, attributes: Attributes, episodes: Episodes, *, n: int = 2000, length: int = 50, seed: int = 0
    ) -> dict[str, MeasureMap]:
        """One for each attribute that can be measured, from random stretches of a dataset."""
        first = stretches(episodes, n, length, seed=seed)
        observations = torch.from_numpy(episodes.observations[first[:, None] + np.arange(length)])
        strengths = attributes(observations).numpy()
        maps = {}
        for k, name in enumerate(attributes.names):
            if name in behaviours.UNITS:
                measure = behaviours.over(name, episodes.behaviour, first, first + length, episodes.dt)
                maps[name] = cls.of(strengths[:, k], measure)
        return maps

    @classmethod
    def of(cls, strengths: Array, measure: Array) -> MeasureMap:
        """From pairs (N,)."""
        from scipy.optimize import isotonic_regression

        order = np.argsort(strengths)
        values = isotonic_regression(measure[order]).x
        low, high = np.quantile(measure, [0.01, 0.99])
        return cls(strengths[order], values, float(low), float(high), float(measure.std()))

    def __call__(self, strengths: Array) -> Array:
        """v -> u*(v), constant beyond the dataset."""
        return cast(Array, np.interp(strengths, self.strengths, self.values))

    @property
    def range(self) -> float:
        return self.high - self.low


def measures(result: Rollout, names: tuple[str, ...], segments: int = 3) -> dict[str, Array]:
    """The measured behaviour of each segment: name -> (n, segments)."""
    segment = result.actions.shape[1] // segments
    return {
        name: np.stack([result.behaviour(name, s * segment, (s + 1) * segment) for s in range(segments)], 1)
        for name in names
    }


def measured_errors(
    result: Rollout, tests: MatchingTests, maps: Mapping[str, MeasureMap], *, segments: int = 3
) -> tuple[Judgement, dict[str, Any]]:
    """By physical measure.

    Returns:
        the judgement, over the attributes that can be measured, and per attribute the errors in its unit of the tests
        that ask for it (n',), its mean over complete segments (n',), and the requested strength (n',).
    """
    up = complete(result, segments)
    wrong, asked, details = np.zeros(up.shape), np.zeros(len(tests)), {}
    found = measures(result, tuple(maps), segments)
    for name, u in maps.items():
        k = tests.attributes.index(name)
        m, v = tests.mask[:, k], tests.targets[:, k]
        error = np.abs(found[name] - u(v)[:, None])
        wrong += m[:, None] * np.minimum(error / u.range, 1.0)
        asked += m
        mean = np.where(up, found[name], np.nan)
        kept = m & up.any(1)
        details[name] = {
            "requested": v[kept],
            "achieved": np.nanmean(mean[kept], 1),
            "error": np.nanmean(np.where(up, error, np.nan)[kept], 1),
            "test": np.flatnonzero(kept),
        }
    errors = np.where(up, wrong / np.maximum(asked, 1)[:, None], 1.0)
    return Judgement(errors[asked > 0]), details


def best_recorded(
    episodes: Episodes, tests: MatchingTests, maps: Mapping[str, MeasureMap], *, n: int = 5000, length: int = 50,
    seed: int = 0,
) -> tuple[Judgement, dict[str, Any]]:  # fmt: skip
    """What ``measured_errors`` would say if every test were answered by the best of n recorded stretches.

    A ceiling that needs no policy: what is missing from it is missing from the data.
    """
    first = stretches(episodes, n, length, seed=seed)
    held = {name: behaviours.over(name, episodes.behaviour, first, first + length, episodes.dt) for name in maps}
    rows = {name: tests.attributes.index(name) for name in maps}
    masks = {name: tests.mask[:, k] for name, k in rows.items()}
    errors = {name: np.abs(held[name] - maps[name](tests.targets[:, k])[:, None]) for name, k in rows.items()}
    wrong = sum(masks[name][:, None] * np.minimum(error / maps[name].range, 1.0) for name, error in errors.items())
    asked = sum(mask.astype(int) for mask in masks.values())
    best = np.asarray(wrong).argmin(1)
    details = {
        name: {
            "requested": tests.targets[mask, rows[name]],
            "achieved": held[name][best[mask]],
            "error": errors[name][mask, best[mask]],
            "test": np.flatnonzero(mask),
        }
        for name, mask in masks.items()
    }
    least = np.asarray(wrong).min(1)[asked > 0] / np.asarray(asked)[asked > 0]
    return Judgement(least[:, None]), details
