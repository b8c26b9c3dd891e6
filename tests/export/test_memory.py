"""The peak memory of an export, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Counted above what a first, tiny trace leaves: torch, its exporter and their caches.
LIMIT = 2.5
PROGRAM = """
import pathlib, resource, sys, torch
from intaglio_export.writing import Stage, write_stages
from intaglio_export.graphs import ExportUnit, GraphSpec, TensorSpec

def unit(width, layers, name):
    network = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network
        def forward(self, *tensors):
            return self.network(tensors[0])
    axes = ("rows", "tokens", width)
    ends = TensorSpec("latent", axes), TensorSpec("prediction", axes)
    spec = GraphSpec(f"{name}/model.onnx", ends[:1], ends[1:])
    return network, ExportUnit(Named(), spec, {"rows": 2, "tokens": 3}, {}, {})

def export(width, layers, name):
    network, made = unit(width, layers, name)
    write_stages([Stage(network, [made])], pathlib.Path(sys.argv[1]), lambda what, done: None)

export(8, 2, "small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export(2048, 8, "large")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / (2048 * 2048 * 8 * 4))
"""


def test_an_export_takes_less_than_2_5_times_the_weights(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=root, env={"PYTHONPATH": f"{root}:{root / 'export'}"}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < LIMIT
