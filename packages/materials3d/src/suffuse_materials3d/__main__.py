"""``python -m suffuse_materials3d``: look at files of volumes, measure and mesh them, simulate sets.

    python -m suffuse_materials3d check-data scan.tif
    python -m suffuse_materials3d measure scan.tif --names vf_1 drel_1 tau_1
    python -m suffuse_materials3d mesh scan.tif scan.glb
    python -m suffuse_materials3d simulate data/blend --system flory-huggins-three --trajectories 64

Training, sampling and benchmarks are commands of ``suffuse``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from suffuse.errors import SuffuseError


def check_data(path: Path) -> None:
    """Say what a file holds and whether it can be learned from: phases, voxels, percolation, representative volume."""
    from . import metrics
    from .data.tomogram import rev
    from .io import read_volume

    ms = read_volume(path)
    print(f"{path.name}: {' x '.join(map(str, ms.shape))} voxels of {ms.spacing} {ms.unit}, periodic {ms.periodic}")
    if ms.unit == "voxel":
        print("  the voxel size is not in the file; give it with read_volume(path, spacing=..., unit=...)")
    if max(ms.spacing) > min(ms.spacing) * (1 + 1e-6):
        print("  voxels are not cubes: thickness, pore_size and sv_cubes refuse that; tpb, iface_conn and norm_STAT_e")
        print("  count edges whatever their length; all other descriptors account for it")
    for phase in ms.phases:
        through = [axis for axis, name in enumerate("xyz") if metrics.percolates(ms, phase, axis)]
        names = ", ".join("xyz"[axis] for axis in through) or "no axis"
        print(f"  phase {phase}: {ms.mask(phase).mean():.4f} of the volume, percolates along {names}")
    if len(ms.phases) < 2:
        print("  one phase only: nothing can be learned from it")
        return
    for edge, spread in rev(ms).items():
        print(f"  patches of {edge}^3: the fraction of a phase varies by up to {spread:.1%}")


def measure(path: Path, names: Sequence[str]) -> None:
    """Print descriptors of a volume, all quick ones by default; curves as r and value."""
    from . import measure as measure_structure
    from .io import read_volume

    for name, value in measure_structure(read_volume(path), names or None).items():
        if hasattr(value, "r"):
            print(name, *(f"{r:g}:{v:.5g}" for r, v in zip(value.r, value.values, strict=True)))
        else:
            print(f"{name} {value:.6g}")


def mesh(path: Path, out: Path, smooth: int) -> None:
    """Write the meshes of all phases of a volume."""
    from .io import read_volume
    from .mesh import to_scene, write_mesh

    print(write_mesh(to_scene(read_volume(path), smooth=smooth), out))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 2 where it cannot be done, with the reason."""
    parser = argparse.ArgumentParser(prog="python -m suffuse_materials3d", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check-data", help=(check_data.__doc__ or "").split(":")[0])
    check.add_argument("path", type=Path)
    numbers = commands.add_parser("measure", help=measure.__doc__)
    numbers.add_argument("path", type=Path)
    numbers.add_argument("--names", nargs="*", default=[], help="descriptors, see suffuse_materials3d.descriptors")
    surfaces = commands.add_parser("mesh", help=mesh.__doc__)
    surfaces.add_argument("path", type=Path)
    surfaces.add_argument("out", type=Path, help="ends in .glb, .ply, .stl or .3mf")
    surfaces.add_argument("--smooth", type=int, default=10)
    simulate = commands.add_parser("simulate", help="Simulate a set of volumes, or go on with one.")
    simulate.add_argument("out", type=Path)
    simulate.add_argument("--system", default="cahn-hilliard")
    simulate.add_argument("--trajectories", type=int, default=128)
    simulate.add_argument("--shape", type=int, nargs=3, default=(32, 32, 16))
    simulate.add_argument("--snapshots", type=int, default=4)
    simulate.add_argument("--descriptors", nargs="*", default=[])
    simulate.add_argument("--boundary", default="periodic")
    simulate.add_argument("--histories", nargs="*", default=[])
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--workers", type=int, default=None)
    simulate.add_argument("--device", default="cpu")
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    try:
        if command == "simulate":
            from .data import simulate_dataset

            print(simulate_dataset(**given))
        else:
            run: dict[str, Callable[..., None]] = {"check-data": check_data, "measure": measure, "mesh": mesh}
            run[command](**given)
    except SuffuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
