"""A process told to keep what it frees does not ask the system for it again."""

import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from suffuse.memory import keep_freed_memory

if {keep}:
    assert keep_freed_memory()

def step():
    x = torch.ones(12 << 20, requires_grad=True)
    for _ in range(6):
        x = (x * 1.5).tanh()
    x.sum().backward()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    step()
before = faults()
for _ in range(2):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of the C library of Linux")
def test_freed_memory_is_taken_again():
    def faults(keep: bool) -> int:
        code = CODE.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert faults(keep=True) < faults(keep=False) / 5
