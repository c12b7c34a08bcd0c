"""Benchmarks of the core: a small model of handwritten digits, and samplers on exact denoisers."""

from suffuse.bench import Benchmark
from suffuse.benchmarks.digits import digits
from suffuse.benchmarks.flow_maps import flow_maps
from suffuse.benchmarks.fokker_planck import fokker_planck
from suffuse.benchmarks.intrinsic_dimension import intrinsic_dimension
from suffuse.benchmarks.likelihood import likelihood
from suffuse.benchmarks.overhead import overhead
from suffuse.benchmarks.radd import radd
from suffuse.benchmarks.samplers_exact import samplers_exact
from suffuse.benchmarks.samplers_trained import samplers_trained
from suffuse.benchmarks.subspaces import subspaces

BENCHMARKS: tuple[Benchmark, ...] = (
    digits,
    flow_maps,
    fokker_planck,
    intrinsic_dimension,
    likelihood,
    overhead,
    radd,
    samplers_exact,
    samplers_trained,
    subspaces,
)
