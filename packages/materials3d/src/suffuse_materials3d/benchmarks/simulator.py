"""How fast structures are simulated, and against py-pde on the same equation, grid and accuracy."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from torch import Tensor

#: (shape, steps, batch) by profile.
SIZES = {
    "quick": [((32, 32, 16), 100, 8), ((64, 64, 32), 30, 8)],
    "full": [((32, 32, 16), 300, 8), ((64, 64, 32), 300, 8), ((128, 128, 64), 50, 2)],
}
GRID = {"quick": (32, 32, 16), "full": (64, 64, 32)}
#: At once on a GPU, which has little to do with less.
GPU_VOXELS = 2**25
#: Time that both solvers cover, from a field that has begun to separate.
SPAN = {"quick": 10.0, "full": 20.0}
TOLERANCE = 0.02
EXPLICIT, PEER = "cahn-hilliard, explicit", "py-pde"


@benchmark(
    "materials3d/simulator",
    paper="Zwicker 2020, py-pde: A Python package for solving partial differential equations, JOSS 5, 2158",
    claim="The spectral step reaches a given accuracy in at most half the time of py-pde's solver, and an explicit "
    "step takes at most half the time of the same one there.",
    peers=("py-pde",),
    extras=("suffuse-materials3d[peers]",),
)
def simulator(run: Run) -> None:
    """`volumes-per-minute` is by the clock that `setting` names: wall, or the processor's, which other programs on the
    machine do not change. One thread. `ratio-to-py-pde` is py-pde's processor time over ours for the same field, grid
    and span. With `match` "time step" all take the largest step at which py-pde's explicit step is stable: our spectral
    one, and our explicit one, which is py-pde's scheme in the same double precision. With "accuracy" each takes the
    largest of its steps that stays within 2 % (root mean square) of its own solution at a quarter of that step; ours is
    the spectral step of second order. What is compiled is so before it is timed.
    """
    import torch

    from ..simulate import CahnHilliard, FloryHuggins, Ternary

    for shape, steps, batch in SIZES[run.profile]:
        if run.device != "cpu":
            batch = GPU_VOXELS // math.prod(shape)
        for name, equation, mean in (
            ("cahn-hilliard", CahnHilliard(), torch.zeros(batch)),
            ("flory-huggins", FloryHuggins(), torch.full((batch,), 0.5)),
            ("ternary", Ternary(), torch.tensor([[0.4, 0.3, 0.3]]).expand(batch, 3)),
        ):
            if name != "cahn-hilliard" and shape[0] > 32:
                continue
            with run.stage(f"{name} {shape}"):
                u = equation.start(mean, shape, torch.Generator().manual_seed(run.seed)).to(run.device)
                equation.run(u, [2 * equation.dt])
                wall, cpu = time.perf_counter(), time.process_time()
                equation.run(u, [steps * equation.dt])
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            for clock, seconds in (("wall", wall), ("processor", cpu)):
                if clock == "wall" or run.device == "cpu":
                    run.row(
                        dataset="x".join(map(str, shape)), method=name, metric="volumes-per-minute",
                        value=60 * batch / seconds * steps / 300, better="higher",
                        setting={"steps": 300, "clock": clock}, n=batch,
                    )  # fmt: skip
    with run.stage("py-pde"):
        _against_py_pde(run)
    with run.stage("draw"):
        _draw(run)


def _draw(run: Run) -> None:
    """Slices along x and z of what each equation makes."""
    import torch
    from matplotlib.figure import Figure

    from ..microstructure import Microstructure
    from ..plots import _slice
    from ..simulate import CahnHilliard, FloryHuggins, Ternary, double_threshold

    shape = (48, 4, 24)
    random = torch.Generator().manual_seed(run.seed)
    film, blend, three = CahnHilliard(boundary="film", substrate=0.3), FloryHuggins(), Ternary()
    u = film.run(film.start(torch.zeros(1), shape, random), [100.0])[0, 0]
    p = blend.run(blend.start(torch.tensor([0.5]), shape, random, 0.01), [30.0, 120.0])[0]
    c = three.run(three.start(torch.tensor([[0.4, 0.3, 0.3]]), shape, random), [200.0])[0, 0]
    drawn = {
        "film on a substrate": (u > 0).to(torch.uint8),
        "blend, early": double_threshold(p[0]),
        "blend, late": double_threshold(p[1]),
        "three components": three.phases(c),
    }
    figure = Figure(figsize=(12, 2.4), layout="constrained")
    for axis, (title, labels) in zip(figure.subplots(1, 4), drawn.items(), strict=True):
        _slice(axis, Microstructure(labels.numpy()), 1, 1)
        axis.set(title=title, xticks=[], yticks=[])
    run.figure("equations", figure, "Slices across a film of 24 voxels, and of blends and mixtures of three.")


def _against_py_pde(run: Run) -> None:
    import torch

    try:
        import pde  # noqa: F401
    except ImportError:
        run.note("py-pde is not installed, so it was not compared; pip install 'suffuse-materials3d[peers]'")
        return
    from ..simulate import CahnHilliard

    grid, span = GRID[run.profile], SPAN[run.profile]
    dataset = "x".join(map(str, grid))
    start = CahnHilliard(dt=0.25).run(
        CahnHilliard().start(torch.zeros(1), grid, torch.Generator().manual_seed(run.seed)), [20.0]
    )[:, 0]
    theirs = _PyPde(start)
    small = 0.0125  # below 2 / (12 (12 kappa - 1)), where the explicit step of seven points blows up
    _, ours_small = _ours(start, span, small)
    _, their_small = theirs(span, small)
    solutions = {
        "ours": _largest(lambda dt: _ours(start, span, dt), (2.0, 1.0, 0.5, 0.25, 0.125)),
        "py-pde": _largest(lambda dt: theirs(span, dt), (small,)),
    }
    other, explicit_small = _explicit(start, span, small)
    dt, seconds, _ = solutions["ours"]
    their_dt, their_seconds, _ = solutions["py-pde"]
    at_same_step = {"cahn-hilliard": ours_small, EXPLICIT: explicit_small, PEER: their_small}
    for match, times in (
        ("time step", {name: (small, seconds) for name, seconds in at_same_step.items()}),
        ("accuracy", {"cahn-hilliard": (dt, seconds), PEER: (their_dt, their_seconds)}),
    ):
        for name, (step, seconds) in times.items():
            common: dict[str, Any] = {"dataset": dataset, "method": name}
            run.row(
                metric="seconds", value=seconds, better="lower", unit="s", setting={"match": match, "dt": step},
                **common,
            )  # fmt: skip
            if name != PEER:
                run.row(
                    metric="ratio-to-py-pde", value=times[PEER][1] / seconds, better="higher", seconds=seconds,
                    setting={"match": match}, **common,
                )  # fmt: skip
    for name, field in (("cahn-hilliard", solutions["ours"][2]), (EXPLICIT, other)):
        error = float((field - solutions["py-pde"][2]).square().mean().sqrt())
        run.row(dataset=dataset, method=name, metric="rms-difference-to-py-pde", value=error, better="lower")


def _ours(start: Tensor, span: float, dt: float) -> tuple[Tensor, float]:
    """(field, processor seconds)."""
    from ..simulate import CahnHilliard

    equation = CahnHilliard(dt=dt, order=2)
    clock = time.process_time()
    u = equation.run(start, [span])[0, 0]
    return u, time.process_time() - clock


def _explicit(start: Tensor, span: float, dt: float) -> tuple[Tensor, float]:
    """(field, processor seconds), compiled before."""
    from ..simulate import CahnHilliard, explicit

    equation = CahnHilliard(dt=dt)
    explicit(equation, start.double(), [dt])
    clock = time.process_time()
    u = explicit(equation, start.double(), [span])[0, 0]
    return u.float(), time.process_time() - clock


class _PyPde:
    """The same equation by py-pde: finite differences, explicit Euler, compiled once."""

    def __init__(self, start: Tensor) -> None:
        import pde

        cells = list(start.shape[1:])
        self.grid = pde.CartesianGrid([(0, n) for n in cells], cells, periodic=True)
        self.field = pde.ScalarField(self.grid, start[0].double().numpy())
        self.equation = pde.CahnHilliardPDE(interface_width=1.0, bc_c="periodic", bc_mu="periodic")
        self.steppers: dict[float, Any] = {}

    def __call__(self, span: float, dt: float) -> tuple[Tensor, float]:
        import pde
        import torch

        if dt not in self.steppers:
            solver = pde.EulerSolver(self.equation, backend="numba")
            stepper = solver.make_stepper(self.field.copy(), dt=dt)
            stepper(self.field.copy(), 0, dt)  # compiles
            self.steppers[dt] = stepper
        state = self.field.copy()
        clock = time.process_time()
        self.steppers[dt](state, 0, span)
        return torch.from_numpy(state.data).float(), time.process_time() - clock


def _largest(solve: Any, steps: tuple[float, ...]) -> tuple[float, float, Any]:
    """(step, seconds, field) of the largest step within the tolerance, or of the smallest."""
    for dt in steps:
        u, seconds = solve(dt)
        fine, _ = solve(dt / 4)
        if float((u - fine).square().mean().sqrt() / fine.square().mean().sqrt()) < TOLERANCE:
            break
    return dt, seconds, u
