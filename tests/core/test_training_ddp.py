"""Training on several processes, by Lightning's own flags."""

import os
import re
import subprocess
import sys

import pytest

from suffuse import hub

SCRIPT = """
import torch
import suffuse

if __name__ == "__main__":
    torch.manual_seed(0)
    data = torch.randn(20, 1, 8, generator=torch.Generator().manual_seed(0))
    net = suffuse.nets.DiT(1, 2, ndim=1, hidden=16, depth=1, heads=2)
    denoiser = suffuse.NetworkDenoiser(net, suffuse.schedules.VPCosine())
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "progress": False}
    trained = suffuse.training.fit(denoiser, data, steps=5, batch_size=4, out="run", **options)
    print(f"weights {sum(p.sum().item() for p in trained.parameters()):.10f}", flush=True)
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_and_one_checkpoint(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    weights = re.findall(r"weights (-?\d+\.\d{10})", done.stdout)  # both may print on one line
    assert len(weights) == 2
    assert weights[0] == weights[1]
    assert hub.load(tmp_path / "run").prediction_type == "v_prediction"
