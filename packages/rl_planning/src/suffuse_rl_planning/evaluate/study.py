"""A study with people: can they put clips of one attribute in order?

Each question shows three clips of one attribute at strengths 0.1, 0.5 and 0.9, shuffled and without numbers, and asks
to sort them from least to most. Guessing gets one in six right. ``prepare_study`` writes a page as a labelling session
does, ``score_study`` counts; ``simulated_answers`` is for trying the kit out, and is nobody's opinion.
Dong et al. (2024), "AlignDiff", arXiv:2310.02054, section 5.2.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from suffuse.errors import InvalidArgument

from .. import render
from ..data.files import replacing
from ..envs import Array, rollout
from ..requests import Commanded

STRENGTHS = (0.1, 0.5, 0.9)
CHANCE = 1 / 6


def prepare_study(
    folder: Path | str,
    policies: Mapping[str, Commanded],
    attributes: Iterable[str],
    *,
    n: int = 5,
    steps: int = 100,
    settle: int = 50,
    every: int = 2,
    backend: str = "auto",
    seed: int = 0,
) -> Path:
    """Roll policies out, and write a page that asks people to sort clips.

    Args:
        folder: where.
        policies: name -> policy that can be asked for strengths; names do not appear on the page.
        attributes: each is asked about apart.
        n: questions per policy and attribute.
        steps, settle: control steps of a rollout, and the first of these, which are not shown.
        every: draw every so many steps.
        backend: of ``render.frames``.
        seed: of initial states and order.

    Returns:
        the page to open.
    """
    names = tuple(attributes)
    if not policies or not names or n < 1 or not 0 <= settle < steps:
        raise InvalidArgument("give at least one policy, one attribute and one question, and settle below steps")
    folder = Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    questions: list[dict[str, Any]] = []
    for who, policy in policies.items():
        for name in names:
            policy.request(**{name: np.tile(STRENGTHS, n)})
            result = rollout(policy, env_id=policy.env_id, n=3 * n, steps=steps, seed=seed)  # type: ignore[arg-type]
            measured = result.behaviour(name, settle)
            for k in range(n):
                order = generator.permutation(3)
                clips = [f"{len(questions)}-{place}" for place in range(3)]
                for clip, i in zip(clips, order, strict=True):
                    shown, _ = render.frames(policy.env_id, result.qpos[3 * k + i, settle:steps:every], backend=backend)
                    render.write_gif(folder / "clips" / f"{clip}.gif", shown, fps=1 / (every * result.dt))
                questions.append(
                    {
                        "policy": who, "attribute": name, "clips": clips,
                        "strengths": [STRENGTHS[i] for i in order],
                        "measured": [float(measured[3 * k + i]) for i in order],
                    }
                )  # fmt: skip
    shuffled = [questions[i] for i in generator.permutation(len(questions))]
    with replacing(folder / "key.json") as target:
        target.write_text(json.dumps(shuffled))
    public = [{"attribute": q["attribute"], "clips": q["clips"]} for q in shuffled]
    with replacing(folder / "index.html") as target:
        target.write_text(PAGE.replace("QUESTIONS", json.dumps(public)))
    return folder / "index.html"


def score_study(folder: Path | str, files: Iterable[Path | str]) -> dict[tuple[str, str], dict[str, float]]:
    """How often people sorted as requested.

    Args:
        folder: of the study.
        files: JSON, ``{"annotator": name, "orders": [[place of the least, middle, most], ...]}`` each, a null where a
            question was skipped.

    Returns:
        (policy, attribute) -> ``sorted``, the share of right orders; ``standard_error`` of it; ``n`` answers.
    """
    key = json.loads((Path(folder) / "key.json").read_text())
    right: dict[tuple[str, str], list[bool]] = {}
    for file in files:
        sheet = json.loads(Path(file).read_text())
        if len(sheet.get("orders", ())) != len(key):
            raise InvalidArgument(f"{Path(file).name} does not answer the {len(key)} questions of this study")
        for question, order in zip(key, sheet["orders"], strict=True):
            if order is not None:
                strengths = [question["strengths"][place] for place in order]
                right.setdefault((question["policy"], question["attribute"]), []).append(strengths == sorted(strengths))
    if not right:
        raise InvalidArgument("files hold no answers")
    return {
        who: {"sorted": float(np.mean(v)), "standard_error": float(np.std(v) / len(v) ** 0.5), "n": len(v)}
        for who, v in right.items()
    }


def simulated_answers(folder: Path | str, out: Path | str, *, noise: float, seed: int = 0) -> Path:
    """Orders by the measured behaviour plus Gaussian noise of that standard deviation, in its unit: no person."""
    key = json.loads((Path(folder) / "key.json").read_text())
    generator = np.random.default_rng(seed)
    orders: list[Array] = [
        np.argsort(np.asarray(q["measured"]) + noise * generator.standard_normal(3)).tolist() for q in key
    ]
    Path(out).write_text(json.dumps({"annotator": "simulated", "orders": orders}))
    return Path(out)


_CHOICES = [f"{a + 1} {b + 1} {c + 1}" for a, b, c in itertools.permutations(range(3))]
PAGE = """<!doctype html>
<meta charset="utf-8"><title>From least to most</title>
<style>
body { font: 16px system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #22262b }
figure { display: inline-block; margin: 0 1% 1rem 0; width: 31% } img { width: 100% }
button { font: inherit; margin: .3rem }
</style>
<p><label>Your name or number: <input id="who"></label> <span id="at"></span></p>
<h2 id="ask"></h2><div id="clips"></div><div id="form"></div>
<script>
const questions = QUESTIONS, choices = CHOICES, orders = [];
const byId = (name) => document.getElementById(name);
function show() {
  const now = questions[orders.length];
  if (!now) { finish(); return; }
  byId("at").textContent = `${orders.length + 1} of ${questions.length}`;
  byId("ask").textContent = `Sort by ${now.attribute}, from least to most`;
  byId("clips").innerHTML = now.clips.map((c, i) =>
    `<figure><img src="clips/${c}.gif"><figcaption>${i + 1}</figcaption></figure>`).join("");
  byId("form").innerHTML = "";
  for (const choice of [...choices, "cannot tell"]) {
    const button = document.createElement("button");
    button.textContent = choice;
    button.onclick = () => {
      orders.push(choice === "cannot tell" ? null : choice.split(" ").map((p) => Number(p) - 1)); show();
    };
    byId("form").append(button);
  }
}
function finish() {
  const annotator = byId("who").value || "anonymous";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ annotator, orders })], { type: "application/json" }));
  link.download = `study-${annotator}.json`; link.textContent = link.download;
  byId("ask").textContent = "Done, thank you. Send this file back:";
  byId("clips").innerHTML = ""; byId("form").innerHTML = ""; byId("form").append(link);
}
show();
</script>
""".replace("CHOICES", json.dumps(_CHOICES))
