"""What a run was measured on: hardware and versions, and nothing that identifies the computer or its owner."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import TypedDict


class Machine(TypedDict):
    """The description that is committed beside result rows."""

    slug: str
    cpu: str
    cores: int
    memory_gb: float
    gpu: str | None
    os: str
    python: str
    torch: str


def describe_machine(device: str = "cpu") -> Machine:
    """Describe this machine; ``slug`` names the hardware that ``device`` is, as in ``cpu-2core-amd-epyc-9b14``."""
    import torch

    cpu, cores = _cpu_model(), _cores()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    name = f"gpu-{gpu}" if gpu and device.startswith("cuda") else f"{device.split(':')[0]}-{cores}core-{cpu}"
    return Machine(
        slug=re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm|c)\)", "", name.lower())).strip("-"),
        cpu=cpu,
        cores=cores,
        memory_gb=_memory_gb(),
        gpu=gpu,
        os=_operating_system(),
        python=platform.python_version(),
        torch=str(torch.__version__),
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), flags=re.M) if info.exists() else []
    return str(names[0]).strip() if names else platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gb() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # not POSIX
        return 0.0


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"
