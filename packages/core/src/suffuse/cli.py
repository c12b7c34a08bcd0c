"""The command line: ``suffuse COMMAND``.

Commands are the typed functions below; their keyword arguments are the options and their docstrings the help. The
options of ``train RECIPE`` and ``sample CHECKPOINT`` are those of the recipe's own functions.

Exit status: 0 if all went well, 1 if a benchmark or a training failed, 2 if the command was not understood.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from suffuse import __version__
from suffuse.errors import InvalidArgument, SuffuseError, unknown
from suffuse.memory import keep_freed_memory
from suffuse.registry import RegistryWarning, summary_of
from suffuse.threads import wait_passively

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.table import Table

    from suffuse.recipes import Recipe

INTERRUPTED = 130


class UsageError(SuffuseError):
    """The command line was not understood."""


# --- commands ----------------------------------------------------------------------------------------------------


def domains() -> int:
    """List the installed packages that offer recipes or benchmarks."""
    from suffuse import registry
    from suffuse.bench import benchmarks
    from suffuse.recipes import recipes as all_recipes

    with _registry_warnings():
        offered = [[item.domain for item in table.values()] for table in (all_recipes(), benchmarks())]
    table = _table("domain", "package", "recipes", "benchmarks")
    for domain, package in registry.domains().items():
        table.add_row(domain, package, *(str(names.count(domain)) for names in offered))
    _print(table)
    return 0


def recipes() -> int:
    """List what can be trained."""
    from suffuse.recipes import recipes as all_recipes

    with _registry_warnings():
        known = all_recipes()
    table = _table("recipe", "what it trains")
    for recipe in known.values():
        table.add_row(recipe.name, recipe.summary)
    _print(table)
    return 0


def train(recipe: Recipe, arguments: Sequence[str]) -> int:
    """Train a recipe: suffuse train RECIPE [options]."""
    prog = f"suffuse train {recipe.name}"
    options = _parse(_function_parser(recipe.train, prog), arguments)
    keep_freed_memory()
    checkpoint = recipe.train(**options)
    _print(f"The checkpoint is in {checkpoint}")
    if recipe.sample:
        _print(f"Sample from it: suffuse sample {checkpoint} --out samples")
    return 0


def sample(checkpoint: Path, arguments: Sequence[str]) -> int:
    """Draw samples from a trained checkpoint: suffuse sample CHECKPOINT [options]."""
    from suffuse.hub import read_config
    from suffuse.recipes import get_recipe

    name = read_config(checkpoint).get("metadata", {}).get("recipe")
    if not name:
        raise InvalidArgument(f"checkpoint: {checkpoint} was not made by a recipe; load it with suffuse.hub.load")
    with _registry_warnings():
        recipe = get_recipe(name)
    if recipe.sample is None:
        raise InvalidArgument(f"checkpoint: recipe {name!r} has nothing to sample")
    first = next(iter(inspect.signature(recipe.sample).parameters))
    parser = _function_parser(recipe.sample, f"suffuse sample {checkpoint}", skip={first})
    for file in recipe.sample(checkpoint, **_parse(parser, arguments)):
        _print(str(file))
    return 0


def bench(
    names: Sequence[str] = (),
    *,
    list_only: bool = False,
    profile: Literal["quick", "full"] = "quick",
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    out: Path = Path("report"),
    device: str = "auto",
    progress: bool = True,
    resume: bool = False,
) -> int:
    """Run benchmarks and write a report as a web page, Markdown and JSON lines.

    Args:
        names: benchmarks, domains or patterns such as '*/samplers-*'; all if none is given.
        list_only: only list the benchmarks.
        profile: quick takes minutes on two CPU cores with bundled data; full takes a GPU or hours.
        seed: seed of all random draws.
        seeds: several seeds; the report then has mean and standard deviation over them.
        out: folder of the report; an earlier report there is replaced.
        device: cpu, cuda, or auto for the best there is.
        progress: whether to say what happens.
        resume: go on with the run in out; seeds of benchmarks that finished there are kept.
    """
    from suffuse.bench import benchmarks, run_benchmarks, select
    from suffuse.bench.report import title
    from suffuse.bench.tables import duration
    from suffuse.data import data_root

    with _registry_warnings():
        chosen = select(names, benchmarks())
    if list_only:
        table = _table("benchmark", "claim", "needs")
        for item in chosen:
            table.add_row(item.name, item.claim, ", ".join(item.extras))
        _print(table)
        return 0
    if not chosen:
        raise InvalidArgument("no installed package has benchmarks; install one of the suffuse packages")
    report = run_benchmarks(
        chosen,
        out,
        profile=profile,
        seeds=seeds or [seed],
        device=device,
        data=data_root(),
        progress=progress,
        resume=resume,
    )
    table = _table("benchmark", "outcome", "rows", "time")
    for result in report.results:
        table.add_row(result.name, result.status, str(len(result.rows)), duration(result.seconds))
    _print(table)
    _print(f"{title(report)}, in {duration(report.seconds)}. The report is {out / 'index.html'}")
    return 0 if report.ok else 1


def results(*, run: Path | None = None, root: Path = Path("."), check: bool = False) -> int:
    """Keep the rows of a benchmark run in results/, and write the tables of README and docs from the kept rows.

    Args:
        run: report folder of a run; by default 'report' if it exists, else only the tables are written.
        root: the repository.
        check: change nothing; exit with 1 if a table is not up to date.
    """
    from suffuse.bench import Report
    from suffuse.bench.results import commit_report, render_tables

    if check:
        stale = render_tables(root, check=True)
        for path in stale:
            _print(f"{path} is not up to date; run: suffuse results")
        return 1 if stale else 0
    if run is None and (root / "report" / "run.json").exists():
        run = root / "report"
    written = commit_report(Report.read(run), root) if run else []
    for path in written + render_tables(root):
        _print(f"wrote {path}")
    return 0


# --- from the command line to a function ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status. Errors that a user can mend are one line on standard error."""
    wait_passively()
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except (UsageError, InvalidArgument) as error:
        _complain(error)
        return 2
    except SuffuseError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED


HELP = """\
usage: suffuse COMMAND [options]

Diffusion models for research: train, sample and measure them.

commands:
  domains              {domains}
  recipes              {recipes}
  train RECIPE         Train a recipe; its options: suffuse train RECIPE --help
  sample CHECKPOINT    Draw samples from a trained checkpoint
  bench [NAME ...]     {bench}
  results              Keep the rows of a benchmark run, and write the tables of README and docs

options:
  -h, --help           Show this help, or with a command its help
  --version            Show the version

for instance:
  suffuse train core/digits --steps 500 --out runs/digits
  suffuse sample runs/digits --out samples
  suffuse bench core --out report"""


def _dispatch(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help", "help"):
        _print(HELP.format(**{f.__name__: summary_of(f) for f in (domains, recipes, bench)}))
        return 0
    if command == "--version":
        _print(f"suffuse {__version__}")
        return 0
    if command == "train":
        return _train(rest)
    if command == "sample":
        return _sample(rest)
    if command == "bench":
        return bench(**_parse(_bench_parser(), rest))
    if command == "results":
        return results(**_parse(_results_parser(), rest))
    if command == "domains":
        return domains(**_parse(_function_parser(domains, "suffuse domains", config=False), rest))
    if command == "recipes":
        return recipes(**_parse(_function_parser(recipes, "suffuse recipes", config=False), rest))
    raise unknown("command", command, ["bench", "domains", "recipes", "results", "sample", "train"])


def _train(arguments: list[str]) -> int:
    from suffuse.recipes import recipes as all_recipes

    with _registry_warnings():
        known = all_recipes()
    listing = "\n".join(f"  {recipe.name:<32} {recipe.summary}" for recipe in known.values())
    if arguments and arguments[0] in ("-h", "--help"):
        _print("usage: suffuse train RECIPE [--config FILE] [--key value ...]\n\n"
               "Train a recipe and write a checkpoint. The options of a recipe: suffuse train RECIPE --help\n\n"
               f"recipes:\n{listing}")  # fmt: skip
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"train: name a recipe first, as in 'suffuse train RECIPE'; there are:\n{listing}")
    if arguments[0] not in known:
        raise unknown("recipe", arguments[0], known)
    return train(known[arguments[0]], arguments[1:])


def _sample(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        _print("usage: suffuse sample CHECKPOINT [--config FILE] [--key value ...]\n\n"
               "Draw samples from the checkpoint folder that 'suffuse train' wrote, and write them as files.\n"
               "The options depend on the recipe: suffuse sample CHECKPOINT --help")  # fmt: skip
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("sample: name a checkpoint folder first, as in 'suffuse sample runs/digits --out samples'")
    return sample(Path(arguments[0]), arguments[1:])


def _bench_parser() -> ArgumentParser:
    """`bench` has what signatures cannot say: positional names, a flag, and a list without brackets."""
    parser = _function_parser(bench, "suffuse bench", skip={"names", "list_only", "seeds", "resume"}, config=False)
    doc = bench.__doc__ or ""
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", type=str, help=_doc_of("names", doc))
    parser.add_argument("--list", dest="list_only", action="store_true", help=_doc_of("list_only", doc))
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help=_doc_of("seeds", doc))
    parser.add_argument("--resume", action="store_true", help=_doc_of("resume", doc))
    return parser


def _results_parser() -> ArgumentParser:
    parser = _function_parser(results, "suffuse results", skip={"check"}, config=False)
    parser.add_argument("--check", action="store_true", help=_doc_of("check", results.__doc__ or ""))
    return parser


def _doc_of(argument: str, doc: str) -> str:
    found = re.search(rf"^\s*{argument}: (.*)$", doc, flags=re.M)
    return found[1] if found else ""


def _function_parser(
    function: Callable[..., Any], prog: str, skip: Iterable[str] = (), config: bool = True
) -> ArgumentParser:
    """A parser whose options are the keyword arguments of a function."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def format_help(self, *args: Any, **kwargs: Any) -> str:
            return _readable(super().format_help(*args, **kwargs))

    text = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:")[0]
    parser = Parser(prog=prog, description=text, exit_on_error=False, allow_abbrev=False)
    if config:
        parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of the options.")
    parser.add_function_arguments(function, as_group=False, skip=set(skip))
    return parser


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Options by name.

    Raises:
        UsageError: one line that says what was not understood, and where the help is.
    """
    try:
        options: dict[str, Any] = parser.parse_args(list(arguments)).as_dict()
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        reason = _readable(" ".join(str(error).split()))
        known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        got = re.search(r"(?:unrecognized arguments: |Option ')-*([\w.]+)", reason)
        near = difflib.get_close_matches(f"--{got[1]}", known, n=1) if got else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{reason}{hint} (see: {parser.prog} --help)") from error
    options.pop("config", None)
    return options


def _readable(text: str) -> str:
    """Types as their names."""
    return re.sub(r"<class\s+'(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.", "")


@contextmanager
def _registry_warnings() -> Iterator[None]:
    """Show packages that are left out as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", RegistryWarning)
        yield
    for warning in caught:
        print(f"suffuse: warning: {warning.message}", file=sys.stderr)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    return table


def _print(text: Any) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=isinstance(text, str)).print(text, markup=False)


def _complain(problem: object) -> None:
    print(f"suffuse: error: {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
