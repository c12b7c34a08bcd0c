"""Benchmarks: rows are checked, runs are kept apart, and the report says what happened."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from suffuse.bench import Benchmark, Report, Row, Run, benchmark, read_rows, run_benchmarks, select, write_rows
from suffuse.bench.machine import describe_machine
from suffuse.bench.results import commit_report, render_tables
from suffuse.bench.row import json_value, write_text
from suffuse.bench.runner import aggregate, resolve_device
from suffuse.bench.tables import duration, markdown_tables, number, pivot, tables
from suffuse.errors import InvalidArgument, SuffuseError, require

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    + "1f15c4890000000d49444154789c6360000002000001e221bc33"
    "0000000049454e44ae426082"
)


@benchmark("toy/good", paper="Doe 2020", claim="A <b>bold</b> claim.", peers=("baseline",), extras=("suffuse[x]",))
def good(run: Run) -> None:
    """What is done."""
    with run.stage("measure"):
        for method, gain in (("model", 1.0), ("baseline", 0.0)):
            for nfe in (5, 10):
                run.row(
                    dataset="data",
                    method=method,
                    setting={"nfe": nfe},
                    metric="accuracy",
                    value=gain + nfe / 10 + run.seed,
                    better="higher",
                    published=2.0,
                    seconds=float(run.seed),
                )
        run.row(dataset="other", method="model", metric="error", value=3.0, better="lower", unit="mm")
    run.note("It   did\nreproduce.")
    picture = run.out / "pixel.png"
    picture.write_bytes(PIXEL)
    run.figure("pixel", picture, caption="One <pixel>.")
    run.artifact(picture, caption="The file.")


@benchmark("toy/bad", paper="Doe 2020", claim="It works.")
def bad(run: Run) -> None:
    run.row(dataset="data", method="model", metric="accuracy", value=1.0, better="higher")
    raise RuntimeError("broken on purpose")


@benchmark("toy/extra", paper="Doe 2020", claim="It needs more.")
def extra(run: Run) -> None:
    require("no_such_module_anywhere", extra="more")


@benchmark("toy/data", paper="Doe 2020", claim="It needs data.")
def data(run: Run) -> None:
    run.skip("needs the toy data")


@benchmark("toy/silent", paper="Doe 2020", claim="It says nothing.")
def silent(run: Run) -> None:
    pass


@benchmark("other/exit", paper="Doe 2020", claim="It exits.")
def leaves(run: Run) -> None:
    raise SystemExit(3)


KNOWN = {b.name: b for b in (good, bad, extra, data, silent, leaves)}


def make_run(tmp_path: Path) -> Run:
    return Run(good, "quick", 0, "cpu", tmp_path / "work", None, False, tmp_path / "report")


def picture_file(folder: Path) -> Path:
    (folder / "a.png").write_bytes(PIXEL)
    return folder / "a.png"


def make_row(**changes: object) -> Row:
    fields = {"benchmark": "toy/good", "paper": "Doe 2020", "dataset": "data", "method": "model", "metric": "accuracy"}
    fields |= {"better": "higher", "value": 1.0, "device": "cpu", "profile": "quick", "version": "1"}
    return Row(**fields | changes)


def run_quietly(benchmarks, out, **options):
    return run_benchmarks(benchmarks, out, progress=False, device="cpu", **options)


# --- rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.float32(0.5), torch.tensor(0.5), 0.5, np.array(0.5)])
def test_numbers_of_any_library_are_values(value):
    assert make_row(value=value).value == 0.5
    assert make_row(setting={"nfe": np.int64(3)}).setting == {"nfe": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": math.nan}, "value: expected a finite number, got nan"),
        ({"value": math.inf}, "value: expected a finite number"),
        ({"value": "1"}, "value: expected a finite number"),
        ({"value": True}, "value: expected a finite number"),
        ({"value": np.zeros(3)}, "value: expected a finite number"),
        ({"better": "bigger"}, "better: expected 'higher' or 'lower', got 'bigger'"),
        ({"std": -1.0}, "std: must not be negative"),
        ({"std": math.nan}, "std: expected a finite number"),
        ({"published": math.nan}, "published: expected a finite number"),
        ({"n": 0}, "n: expected a whole number"),
        ({"n": 1.5}, "n: expected a whole number"),
        ({"method": " "}, "method: a row needs a non-empty string"),
        ({"unit": None}, "unit: expected a string"),
        ({"setting": {"grid": [1]}}, "setting: 'grid' must be"),
        ({"setting": {"w": math.nan}}, "setting: 'w' must be"),
    ],
)
def test_a_bad_field_is_named(changes, message):
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        make_row(**changes)


def test_rows_survive_the_file(tmp_path):
    rows = [make_row(), make_row(setting={"w": 1.5, "on": True, "of": None}, std=0.1, n=3, published=2.0, unit="µm")]
    write_rows(tmp_path / "deep" / "rows.jsonl", rows)
    assert read_rows(tmp_path / "deep" / "rows.jsonl") == rows
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["rows.jsonl"]
    assert "std" not in (tmp_path / "deep" / "rows.jsonl").read_text().splitlines()[0]  # as it has none
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_line_that_is_no_row_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    write_rows(file, [make_row(), make_row(metric="other")])
    good_text = file.read_text()
    for broken in (good_text[:-20], good_text + "{}\n", good_text + "[]\n", good_text.replace("1.0", "NaN")):
        file.write_text(broken)
        with pytest.raises(SuffuseError, match=r"rows\.jsonl:\d is not a benchmark row"):
            read_rows(file)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


# --- benchmarks and runs ----------------------------------------------------------------------------------------


def test_a_benchmark_knows_what_it_is():
    assert (good.domain, good.slug, good.description) == ("toy", "toy-good", "What is done.")
    assert good.peers == ("baseline",)
    assert good.extras == ("suffuse[x]",)


@pytest.mark.parametrize(("field", "name"), [("paper", "toy/x"), ("claim", "toy/x"), ("name", "X")])
def test_a_benchmark_needs_all_fields(field, name):
    fields = {"paper": "p", "claim": "c"} | ({field: " "} if field != "name" else {})
    with pytest.raises(InvalidArgument, match=field):
        Benchmark(name, good.function, **fields)


def test_selection():
    assert select([], KNOWN) == list(KNOWN.values())
    assert select(["other"], KNOWN) == [leaves]
    assert select(["toy/bad", "toy/good", "toy/*d"], KNOWN) == [bad, good]
    with pytest.raises(InvalidArgument, match="unknown benchmark 'toy/god'; did you mean 'toy/good'"):
        select(["toy/god"], KNOWN)


def test_a_measurement_is_reported_once(tmp_path):
    run = make_run(tmp_path)
    run.row(dataset="d", method="m", metric="x", value=1, better="lower")
    run.row(dataset="d", method="m", metric="x", value=1, better="lower", setting={"nfe": 1})
    with pytest.raises(InvalidArgument, match="was already reported"):
        run.row(dataset="d", method="m", metric="x", value=2, better="lower")


def test_pictures_are_checked(tmp_path):
    run = make_run(tmp_path)
    picture = picture_file(tmp_path)
    run.figure("a", picture)
    (tmp_path / "a.tiff").write_bytes(PIXEL)
    (tmp_path / "empty.png").touch()
    for name, source, message in [
        ("a", picture, "already hold a 'a.png'"),
        ("b/c", picture, "named with letters"),
        ("b", tmp_path / "a.tiff", "must be one of"),
        ("b", tmp_path / "none.png", "is not a file"),
        ("b", tmp_path / "empty.png", "or is empty"),
        ("b", 3, "expected a matplotlib figure or a path, got a int"),
    ]:
        with pytest.raises(InvalidArgument, match=re.escape(message)):
            run.figure(name, source)
    with pytest.raises(InvalidArgument, match="is not a file"):
        run.artifact(tmp_path / "none.glb")


def test_matplotlib_figures_are_saved(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    assert make_run(tmp_path).figure("line", figure).read_bytes().startswith(b"\x89PNG")


# --- the runner -------------------------------------------------------------------------------------------------


def test_one_failure_does_not_stop_the_others(tmp_path):
    report = run_quietly(KNOWN.values(), tmp_path / "report")
    outcomes = {result.name: result.status for result in report.results}
    assert outcomes == {
        "toy/good": "passed",
        "toy/bad": "failed",
        "toy/extra": "skipped",
        "toy/data": "skipped",
        "toy/silent": "failed",
        "other/exit": "failed",
    }
    assert not report.ok
    messages = {result.name: result.message for result in report.results}
    assert "RuntimeError: broken on purpose" in messages["toy/bad"]
    assert "in bad" in messages["toy/bad"]
    assert "reported no rows" in messages["toy/silent"]
    assert messages["toy/data"] == "needs the toy data"
    assert "pip install 'suffuse[more]'" in messages["toy/extra"]
    assert {row.benchmark for row in read_rows(tmp_path / "report" / "rows.jsonl")} == {"toy/good"}


def test_skipped_is_no_failure(tmp_path):
    assert run_quietly([extra, good], tmp_path / "report").ok


def test_seeds_become_mean_and_deviation(tmp_path):
    report = run_quietly([good], tmp_path / "report", seeds=[0, 1, 5])
    row = report.rows[0]
    assert (row.value, row.n, row.seconds) == (1.5 + 2.0, 3, 2.0)
    assert row.std == pytest.approx(math.sqrt(7))
    assert len(report.rows) == 5
    assert report.results[0].notes == ["It did reproduce."]
    assert len(report.results[0].figures) == 1


def test_one_seed_is_kept_as_it_is():
    rows = [make_row(std=0.1, n=7)]
    assert aggregate([rows]) == rows
    assert aggregate([rows, []])[0].std is None


def test_a_report_replaces_an_earlier_one_and_nothing_else(tmp_path):
    out = tmp_path / "report"
    run_quietly([good], out)
    (out / "work" / "toy-good" / "seed-0" / "stale").touch()
    run_quietly([good], out)
    assert not (out / "work" / "toy-good" / "seed-0" / "stale").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(InvalidArgument, match="out: .* is not empty and holds no earlier report"):
        run_quietly([good], tmp_path / "mine")
    with pytest.raises(InvalidArgument, match="out: .* is a file"):
        run_quietly([good], tmp_path / "mine" / "thesis.tex")


def test_an_interrupted_run_keeps_what_it_had(tmp_path):
    @benchmark("toy/stop", paper="p", claim="c")
    def stop(run: Run) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_quietly([good, stop], tmp_path / "report")
    report = Report.read(tmp_path / "report")
    assert [result.name for result in report.results] == ["toy/good"]
    assert "1 not finished" in (tmp_path / "report" / "report.md").read_text()


def test_a_run_goes_on_where_it_was_interrupted(tmp_path):
    out, started = tmp_path / "report", []

    @benchmark("toy/long", paper="p", claim="c")
    def long(run: Run) -> None:
        assert not list(run.out.iterdir())
        started.append(run.seed)
        run.figure("picture", picture_file(tmp_path))
        (run.out / "half").touch()
        if started == [0, 1]:
            raise KeyboardInterrupt
        run.row(dataset="d", method="m", metric="a", value=run.seed, better="higher", setting={"k": 1}, unit="mm")
        run.note(f"Seed {run.seed}.")

    with pytest.raises(KeyboardInterrupt):
        run_quietly([long], out, seeds=[0, 1, 2], resume=True)  # there is nothing yet to go on with
    report = run_quietly([long], out, seeds=[0, 1, 2], resume=True)
    assert started == [0, 1, 1, 2]
    whole = run_quietly([long], tmp_path / "whole", seeds=[0, 1, 2])
    assert report.rows == whole.rows
    assert report.rows[0].n == 3
    assert report.results[0].notes == whole.results[0].notes == ["Seed 0.", "Seed 1.", "Seed 2."]
    assert report.results[0].figures == whole.results[0].figures
    assert report.results[0].seconds >= 0
    del started[:]
    assert run_quietly([long], out, seeds=[0, 1, 2, 3], resume=True).rows[0].n == 4
    assert started == [3]

    for options, what in (({"profile": "full"}, "profile: 'quick', not 'full'"), ({"seeds": [3, 0]}, "first seed")):
        with pytest.raises(InvalidArgument, match=f"resume: .* holds a run with another {what}"):
            run_quietly([long], out, resume=True, **options)
    (out / "work" / "toy-long" / "seed-1.json").write_text("{")
    assert "seed-1.json is damaged" in run_quietly([long], out, seeds=[0, 1], resume=True).results[0].message


def test_a_failed_seed_is_run_again(tmp_path):
    fails = [True]

    @benchmark("toy/flaky", paper="p", claim="c")
    def flaky(run: Run) -> None:
        if run.seed == 0:
            run.figure("picture", picture_file(tmp_path))
        if fails:
            raise RuntimeError(str(fails.pop()))
        run.row(dataset="d", method="m", metric="a", value=1, better="higher")

    assert not run_quietly([flaky], tmp_path / "report").ok
    assert run_quietly([flaky], tmp_path / "report", resume=True).ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, "seeds: expected one or more"),
        ({"seeds": [1, 1]}, "seeds: expected one or more different"),
        ({"profile": "slow"}, "unknown profile 'slow'"),
    ],
)
def test_bad_options_are_named(tmp_path, options, message):
    with pytest.raises(InvalidArgument, match=message):
        run_quietly([good], tmp_path / "report", **options)
    assert not (tmp_path / "report").exists()


def test_devices():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda")
    with pytest.raises(InvalidArgument, match="device: 'abacus' cannot be used here"):
        resolve_device("abacus")


def test_progress_names_the_benchmark_and_the_outcome(tmp_path, capsys):
    run_benchmarks([good, bad], tmp_path / "report", device="cpu")
    printed = capsys.readouterr().out
    for text in ("toy/good (1 of 2)", "measure", "passed after", "failed after", "RuntimeError: broken on purpose"):
        assert text in printed


# --- the report -------------------------------------------------------------------------------------------------


def test_the_page_holds_everything(tmp_path):
    report = run_quietly([good, bad, data], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "A &lt;b&gt;bold&lt;/b&gt; claim." in page
    assert "One &lt;pixel&gt;." in page
    for text in ("Doe 2020", "accuracy ↑", "error ↓ (mm)", "published 2", "It did reproduce.", "broken on purpose"):
        assert text in page
    for text in ("needs the toy data", report.machine["cpu"], "3 benchmarks: 1 passed, 1 failed, 1 skipped"):
        assert text in page
    assert "data:image/png;base64," in page
    links = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert links == ["files/toy-good/pixel.png", "rows.jsonl"]
    assert all((tmp_path / "report" / link).exists() for link in links)


def test_videos_play_and_are_embedded(tmp_path):
    @benchmark("toy/film", paper="p", claim="c")
    def film(run: Run) -> None:
        run.row(dataset="d", method="m", metric="x", value=1, better="lower")
        (run.out / "a.mp4").write_bytes(b"film")
        run.figure("a", run.out / "a.mp4", "moves")

    run_quietly([film], tmp_path / "report")
    assert '<video src="data:video/mp4;base64,' in (tmp_path / "report" / "index.html").read_text()
    assert "[moves](figures/toy-film/a.mp4)" in (tmp_path / "report" / "report.md").read_text()


def test_markdown_report(tmp_path):
    run_quietly([good, bad, data], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## toy/good: passed" in text
    assert "| model | 10 | **2** (published 2) |" in text
    assert "Skipped: needs the toy data" in text
    assert "![One <pixel>.](figures/toy-good/pixel.png)" in text


def test_a_report_is_read_back(tmp_path):
    report = run_quietly([good, bad, data], tmp_path / "report", seeds=[3])
    assert Report.read(tmp_path / "report") == report
    with pytest.raises(SuffuseError, match="holds no benchmark report"):
        Report.read(tmp_path)
    (tmp_path / "report" / "run.json").write_text('{"results": []}')
    with pytest.raises(SuffuseError, match="is not a benchmark report"):
        Report.read(tmp_path / "report")


def test_tables_compare_methods_on_one_dataset():
    rows = [
        make_row(method=m, setting={"nfe": k}, value=v) for m, k, v in (("a", 1, 1.0), ("a", 2, 3.0), ("b", 1, 2.0))
    ]
    rows += [make_row(method="a", setting={"nfe": 1}, metric="error", better="lower", value=0.5, std=0.1, n=3)]
    (table,) = tables(rows)
    assert table.metrics == ("accuracy ↑", "error ↓")
    assert [(line.method, *line.settings) for line in table.lines] == [("a", "1"), ("a", "2"), ("b", "1")]
    assert [cell.best for line in table.lines for cell in line.cells[:1]] == [False, True, False]
    assert not table.lines[0].cells[1].best  # nothing to compare with
    assert "| a | 1 | 1 | 0.5 ± 0.1 (n = 3) |" in markdown_tables(rows)


def test_references_are_not_called_the_best():
    methods = {"real data (ceiling)": 0.99, "model": 0.9, "baseline": 0.8}
    (table,) = tables([make_row(method=method, value=value) for method, value in methods.items()])
    assert [(line.reference, line.cells[0].best) for line in table.lines] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def test_a_metric_against_a_setting():
    """One line per method, the best of its other settings in each cell, the better method first."""
    numbers = {("slow", 5, "a"): 3.0, ("slow", 5, "b"): 2.0, ("slow", 10, "a"): 1.0, ("fast", 5, "a"): 1.0}
    rows = [
        make_row(method=m, setting={"nfe": n, "grid": g}, metric="rms error", better="lower", value=v)
        for (m, n, g), v in numbers.items()
    ]
    (table,) = pivot([*rows, make_row()], "rms error", "nfe")
    assert table.metrics == ("nfe 5", "nfe 10")
    assert [(line.method, [cell.text for cell in line.cells]) for line in table.lines] == [
        ("fast", ["1", ""]),
        ("slow", ["2", "1"]),
    ]
    assert [line.cells[0].best for line in table.lines] == [True, False]
    with pytest.raises(InvalidArgument, match="no rows with the metric 'error'"):
        pivot(rows, "error", "nfe")


def test_columns_of_numbers_come_before_those_of_words():
    (table,) = pivot([make_row(setting={"s": s}, metric="CRPS") for s in ("none", 2.0, 0.5)], "CRPS", "s")
    assert table.metrics == ("s 0.5", "s 2", "s none")


def test_settings_of_every_kind_are_readable():
    (table,) = tables([make_row(setting={"w": 1.5, "on": True, "grid": "karras", "none": None})])
    assert table.lines[0].settings == ("1.5", "yes", "karras", "–")


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.34, "9.3 s"), (245, "4 min 05 s"), (7800, "2 h 10 min"), (59.98, "60.0 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.1235"), (12345.6, "12,346"), (0.0, "0"), (-1.5, "-1.5")])
def test_numbers(value, text):
    assert number(value) == text


# --- committed results ------------------------------------------------------------------------------------------


def test_the_machine_is_described_without_names():
    import platform

    machine = describe_machine()
    assert re.fullmatch(r"cpu-\d+core-[a-z0-9-]+", machine["slug"])
    assert platform.node() not in json.dumps(machine).split('"')
    assert machine["cores"] >= 1


def test_rows_are_committed_and_replace_older_ones(tmp_path):
    @benchmark("toy/other", paper="p", claim="c")
    def other(run: Run) -> None:
        run.row(dataset="d", method="m", metric="x", value=1, better="lower")

    report = run_quietly([good, other, bad], tmp_path / "one")
    written = commit_report(report, tmp_path)
    folder = tmp_path / "results" / report.machine["slug"]
    assert written == [
        folder / "toy-good.jsonl",
        folder / "toy-other.jsonl",
        folder / "machine.json",
        tmp_path / "docs" / "figures" / "toy-good.png",
    ]
    assert [len(read_rows(folder / f"toy-{name}.jsonl")) for name in ("good", "other")] == [5, 1]
    again = run_quietly([good, bad], tmp_path / "two", seeds=[4])
    commit_report(again, tmp_path)
    assert read_rows(folder / "toy-good.jsonl")[0].value == 5.5
    commit_report(run_quietly([good], tmp_path / "three", profile="full"), tmp_path)
    assert len(read_rows(folder / "toy-good.jsonl")) == 10
    assert json.loads((folder / "machine.json").read_text()) == report.machine
    assert commit_report(run_quietly([bad], tmp_path / "four"), tmp_path) == []


def test_tables_between_markers_follow_the_rows(tmp_path):
    commit_report(run_quietly([good], tmp_path / "one"), tmp_path)
    page = tmp_path / "README.md"
    page.write_text("Before.\n\n<!-- results:begin toy/good -->\n<!-- results:end toy/good -->\n\nAfter.\n")
    assert render_tables(tmp_path, check=True) == [page]
    assert "model" not in page.read_text()
    assert render_tables(tmp_path) == [page]
    text = page.read_text()
    assert text.startswith("Before.\n\n<!-- results:begin toy/good -->\n\n**`toy/good`** (Doe 2020), quick profile on ")
    assert text.endswith("<!-- results:end toy/good -->\n\nAfter.\n")
    assert "| model | 5 | 1.5 (published 2) |" in text
    assert render_tables(tmp_path) == []
    page.write_text("<!-- results:begin toy/good:accuracy:nfe -->\n<!-- results:end toy/good:accuracy:nfe -->\n")
    render_tables(tmp_path)
    assert "| model | **1.5** (published 2) | **2** (published 2) |" in page.read_text()
    page.write_text(
        "<!-- results:begin toy/good:accuracy:nfe:nfe=5 -->\n<!-- results:end toy/good:accuracy:nfe:nfe=5 -->\n"
    )
    render_tables(tmp_path)
    assert "| method | nfe 5 |" in page.read_text() and "**2**" not in page.read_text()
    commit_report(run_quietly([good], tmp_path / "full", profile="full"), tmp_path)
    page.write_text("<!-- results:begin toy/good@full -->\n<!-- results:end toy/good@full -->\n")
    render_tables(tmp_path)
    assert "full profile" in page.read_text() and "quick profile" not in page.read_text()
    page.write_text(text)
    commit_report(run_quietly([good], tmp_path / "two", seeds=[1]), tmp_path)
    assert render_tables(tmp_path) == [page]
    assert "| model | 5 | 2.5 (published 2) |" in page.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results:begin toy/none -->\n<!-- results:end toy/none -->\n", "has no rows of 'toy/none'"),
        (
            "<!-- results:begin toy/good@full -->\n<!-- results:end toy/good@full -->\n",
            "has no rows of 'toy/good@full'",
        ),
        ("<!-- results:begin toy/a -->\n<!-- results:end toy/b -->\n", "has no partner"),
    ],
)
def test_markers_are_checked(tmp_path, text, message):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(SuffuseError, match=message):
        render_tables(tmp_path)


def test_values_of_arrays_are_json_and_others_are_named():
    given = {"a": np.float32(0.5), 2: (torch.tensor(3), None), "c": {"d": np.arange(2)}}
    assert json.loads(json.dumps(json_value(given, "x"))) == {"a": 0.5, "2": [3, None], "c": {"d": [0, 1]}}
    with pytest.raises(InvalidArgument, match="x is a set"):
        json_value({"a": {1}}, "x")
