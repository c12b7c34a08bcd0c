"""A labelling session with people: a static page that shows two clips side by side and writes a file of answers.

``prepare`` leaves a folder with the clips, ``index.html`` and ``pairs.hdf5``; it needs no server, only a browser. Left
and right are shuffled, and a share of the pairs comes again later with the sides swapped. ``read_answers`` turns the
files that the annotators send back into preferences; ``consistency`` says how often somebody agrees with themselves,
``agreement`` how often two people do.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from suffuse.errors import InvalidArgument

from .. import render
from ..data import Episodes
from ..data.files import replacing
from ..envs import Array
from .dataset import Preferences
from .synthetic import stretches

#: What the page asks about an attribute; others are asked by their name.
QUESTIONS = {
    "speed": "Which one is faster?",
    "height": "Which one holds its body higher?",
    "energy": "Which one works harder?",
    "jump": "Which one jumps higher?",
    "stride": "Which one takes longer strides?",
    "leg": "Which one relies more on its red (left, or hind) leg?",
    "humanness": "Which one moves more like a person?",
}
VALUES = {"left": -1, "equal": 0, "right": 1}


def prepare(
    folder: Path | str,
    episodes: Episodes,
    questions: Mapping[str, str] | Sequence[str],
    *,
    n: int = 20,
    length: int = 50,
    repeat: float = 0.05,
    backend: str = "auto",
    every: int = 2,
    seed: int = 0,
) -> Path:
    """Write a session to label.

    Args:
        folder: where; made if missing.
        episodes: the dataset, with states to draw from.
        questions: attribute -> question, or attributes alone. They need not be measurable.
        n: pairs.
        length: steps of a clip.
        repeat: share of the pairs that is asked twice.
        backend: of ``render.frames``.
        every: draw every so many steps.
        seed: which pairs, and on which side.

    Returns:
        the page to open.
    """
    if episodes.states is None:
        raise InvalidArgument(f"dataset {episodes.name!r} has no qpos and qvel to draw from; collect it anew")
    names = tuple(questions)
    if n < 1 or not names:
        raise InvalidArgument(f"n must be at least 1 and questions not empty, got n={n}, questions={names}")
    texts = [
        questions[a] if isinstance(questions, Mapping) else QUESTIONS.get(a, f"Which has more {a}?") for a in names
    ]
    folder = Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, 1])  # another stream than that of the stretches
    first = stretches(episodes, 2 * n, length, seed=seed)
    for i, step in enumerate(first):
        pictures, _ = render.frames(episodes.env_id, episodes.states[0][step : step + length : every], backend=backend)
        render.write_gif(folder / "clips" / f"{i}.gif", pictures, fps=1 / (every * episodes.dt))
    sides = [(2 * i, 2 * i + 1) if generator.random() < 0.5 else (2 * i + 1, 2 * i) for i in range(n)]
    again = generator.permutation(n)[: round(repeat * n)]
    trials = [*enumerate(sides), *((int(i), sides[i][::-1]) for i in again)]
    at = first.reshape(n, 2)[..., None] + np.arange(length)
    blank = Preferences(
        names, episodes.observations[at], episodes.actions[at], np.zeros((n, len(names)), int), np.full(n, "nobody")
    )
    blank.to_hdf5(folder / "pairs.hdf5")
    session = {
        "attributes": names,
        "questions": texts,
        "trials": [{"pair": int(pair), "left": int(left), "right": int(right)} for pair, (left, right) in trials],
    }
    with replacing(folder / "session.json") as target:
        target.write_text(json.dumps(session))
    with replacing(folder / "index.html") as target:
        target.write_text(PAGE.replace("SESSION", json.dumps(session).replace("<", "\\u003c")))
    return folder / "index.html"


def read_answers(folder: Path | str, files: Iterable[Path | str]) -> tuple[Preferences, list[dict[str, Any]]]:
    """Preferences from the files that annotators sent back.

    Args:
        folder: of the session.
        files: JSON, ``{"annotator": name, "answers": [{"trial": i, "attribute": a, "answer": "left"}, ...]}`` each.

    Returns:
        the preferences, a row per annotator and answered pair (an attribute that was left open counts as equal, a
        repeated pair by its first answer), and all answers as records with ``pair``, ``attribute``, ``annotator`` and
        ``pref``, for ``consistency`` and ``agreement``.
    """
    folder = Path(folder)
    if not (folder / "session.json").is_file():
        raise InvalidArgument(f"folder={str(folder)!r} holds no session.json; give the folder that `prepare` wrote")
    session = json.loads((folder / "session.json").read_text())
    names, trials = session["attributes"], session["trials"]
    records: list[dict[str, Any]] = []
    for file in files:
        try:
            sheet = json.loads(Path(file).read_text())
            for answer in sheet["answers"]:
                trial = trials[answer["trial"]]
                flipped = trial["left"] > trial["right"]  # clip 2 i is the first of pair i
                value = VALUES[answer["answer"]] * (-1 if flipped else 1)
                names.index(answer["attribute"])
                records.append(
                    {
                        "pair": trial["pair"], "attribute": answer["attribute"], "annotator": sheet["annotator"],
                        "pref": value,
                    }
                )  # fmt: skip
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InvalidArgument(f"{Path(file).name} is not an answer sheet of this session: {error!r}") from error
    if not records:
        raise InvalidArgument("files hold no answers")
    rows: dict[tuple[str, int], Array] = {}
    seen = set()
    for record in records:
        key = (record["annotator"], record["pair"])
        row = rows.setdefault(key, np.zeros(len(names), int))
        if (*key, record["attribute"]) not in seen:
            row[names.index(record["attribute"])] = record["pref"]
            seen.add((*key, record["attribute"]))
    blank = Preferences.from_hdf5(folder / "pairs.hdf5")
    pairs = np.array([pair for _, pair in rows])
    annotators = np.array([str(who) for who, _ in rows])
    answered = Preferences(
        tuple(names), blank.observations[pairs], blank.actions[pairs], np.stack(list(rows.values())), annotators
    )
    return answered, records


def consistency(records: Iterable[Mapping[str, Any]]) -> float:
    """Share of the pairs asked twice, sides swapped, that the same person answered alike; NaN if there are none."""
    return _alike(records, ("annotator", "pair", "attribute"))


def agreement(records: Iterable[Mapping[str, Any]]) -> float:
    """Share of all pairs of answers to the same question, by two people, that are alike; NaN if there are none."""
    first = {(r["annotator"], r["pair"], r["attribute"]): r for r in reversed(list(records))}
    return _alike(first.values(), ("pair", "attribute"))


def _alike(records: Iterable[Mapping[str, Any]], key: tuple[str, ...]) -> float:
    groups = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in key)].append(record["pref"])
    same = [a == b for values in groups.values() for i, a in enumerate(values) for b in values[:i]]
    return float(np.mean(same)) if same else float("nan")


PAGE = """<!doctype html>
<meta charset="utf-8"><title>Which has more of it?</title>
<style>
body { font: 16px system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #22262b }
figure { display: inline-block; margin: 0 1% 1rem 0; width: 48% } img { width: 100%; image-rendering: auto }
fieldset { border: 0; padding: .4rem 0 } label { margin-right: 1.4rem } button { font: inherit; padding: .4rem 1rem }
progress { width: 100% }
</style>
<p><label>Your name or number: <input id="who" value=""></label> <span id="at"></span></p>
<progress id="bar" value="0" max="1"></progress>
<figure><img id="left" alt="left clip"><figcaption>left</figcaption></figure><figure><img id="right" alt="right clip">
<figcaption>right</figcaption></figure>
<form id="form"></form>
<script>
const session = SESSION;
const byId = (name) => document.getElementById(name);
const answers = [];
let trial = 0;
function show() {
  const now = session.trials[trial];
  byId("bar").max = session.trials.length; byId("bar").value = trial;
  if (!now) { finish(); return; }
  byId("at").textContent = `${trial + 1} of ${session.trials.length}`;
  for (const side of ["left", "right"]) byId(side).src = `clips/${now[side]}.gif`;
  byId("form").innerHTML = session.questions.map((text, k) => `<fieldset><legend>${text}</legend>` +
    ["left", "equal", "right"].map((a) => `<label><input type="radio" name="q${k}" value="${a}" required> ${a}</label>`)
    .join("") + "</fieldset>").join("") + "<button>next</button>";
}
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = new FormData(byId("form"));
  session.attributes.forEach((attribute, k) => answers.push({ trial, attribute, answer: given.get(`q${k}`) }));
  trial += 1; show();
});
function finish() {
  const annotator = byId("who").value || "anonymous";
  const text = JSON.stringify({ annotator, answers }, null, 1);
  byId("form").innerHTML = "<p>Done, thank you. Send this file back:</p>";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `answers-${annotator}.json`; link.textContent = link.download;
  byId("form").append(link);
}
show();
</script>
"""
