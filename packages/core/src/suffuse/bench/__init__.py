"""Benchmarks: one published claim each, run side by side with its peers.

A benchmark is a function of a `Run` that reports rows and pictures:

    @benchmark("core/samplers-exact", paper="Lu et al. 2022, arXiv:2211.01095", claim="Second order needs fewer steps.")
    def samplers_exact(run: Run) -> None:
        \"""What is done, in a few lines; the report shows it.\"""
        run.row(dataset="mixture", method="DDIM", metric="rms error", value=0.1, better="lower", setting={"nfe": 10})
        run.figure("error", figure, caption="Error against NFE.")

`run_benchmarks` runs a selection over seeds into a folder, with a report as a web page, as Markdown and as JSON lines.
"""

from suffuse.bench.benchmark import Benchmark, benchmark, benchmarks, select
from suffuse.bench.row import Row, read_rows, write_rows
from suffuse.bench.run import Run, Skipped
from suffuse.bench.runner import Report, Result, run_benchmarks

__all__ = [
    "Benchmark",
    "Report",
    "Result",
    "Row",
    "Run",
    "Skipped",
    "benchmark",
    "benchmarks",
    "read_rows",
    "run_benchmarks",
    "select",
    "write_rows",
]
