"""Measure how long exports take, with this checkout and with another one in turn.

`python -m benchmarks.export_time --peer OTHER/.venv/bin/python` prints a table for
docs/performance.md; `--profile` prints where the time of one export goes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
# One export in a process of its own, which reports the time that its steps took.
PROGRAM = """
import sys, time
began = time.process_time()
import torch
torch.set_num_threads(1)
from pathlib import Path
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
steps = [["Importing", time.process_time() - began]]
last = ["Loading the model", time.process_time()]
def progress(what, done):
    steps.append([last[0], time.process_time() - last[1]])
    last[:] = what, time.process_time()
request = ExportRequest(Path(sys.argv[1]), Path(sys.argv[2]), layout=sys.argv[3], channels="top:1")
export_bundle(request, progress)
progress("", 1.0)
import json
print(json.dumps(steps))
"""
# The same with a clock around the functions that make the phases of an export.
PHASES = """
import functools, gc, importlib, time
seconds = {}
def measure(phase, module, name):
    module = importlib.import_module(module)
    function = getattr(module, name)
    @functools.wraps(function)
    def measured(*args, **kwargs):
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[phase] = seconds.get(phase, 0.0) + time.process_time() - began
    setattr(module, name, measured)
import intaglio_export.exporter
EXPORTER = "torch.onnx._internal.exporter"
OURS = "intaglio_export.tracing.decomposition"
measure("torch.export", "torch.export", "export")
measure("translation", EXPORTER + "._core", "_exported_program_to_onnx_program")
measure("optimizer", "onnxscript.optimizer", "optimize_ir")
measure("explicit collection", "gc", "collect")
try:
    measure("decomposition", OURS, "_decompose")
    measure("type promotion", OURS, "_promote_types")
    measure("registry", OURS, "_from_torchlib")
except ModuleNotFoundError:
    from torch.onnx._internal.exporter._registration import ONNXRegistry
    measure("decomposition", EXPORTER + "._fx_passes", "decompose_with_registry")
    measure("type promotion", EXPORTER + "._fx_passes", "insert_type_promotion_nodes")
    from_torchlib = ONNXRegistry.from_torchlib
    def registry(opset_version):
        began = time.process_time()
        made = from_torchlib(opset_version)
        seconds["registry"] = seconds.get("registry", 0.0) + time.process_time() - began
        return made
    ONNXRegistry.from_torchlib = staticmethod(registry)
began_collection = 0.0
def collected(phase, info):
    global began_collection
    if phase == "start":
        began_collection = time.process_time()
    else:
        spent = time.process_time() - began_collection
        seconds["collection, all"] = seconds.get("collection, all", 0.0) + spent
gc.callbacks.append(collected)
"""
REPORT = "print(json.dumps(dict(steps[:1]) | seconds | {'all': time.process_time()}))"
PROFILED = "\n".join((PHASES, PROGRAM, REPORT))


def tiny_sd3(folder: Path) -> None:
    """Save the tiny Stable Diffusion 3 of the tests."""
    from tests.families import sd3

    sd3.make_pipeline().save_pretrained(folder)


def mid_sd3(folder: Path) -> None:
    """Save half of Stable Diffusion 3 medium's width and depth."""
    from benchmarks.bench.models import make_sd3

    make_sd3().save_pretrained(folder)


def shipped(folder: Path) -> None:
    """Link the model of the repository."""
    folder.symlink_to(ROOT / "models/fashion-sd3")


MODELS: dict[str, Callable[[Path], None]] = {
    "tiny-sd3": tiny_sd3,
    "fashion-sd3": shipped,
    "mid-sd3": mid_sd3,
}


def run(python: str, program: str, source: Path, layout: str) -> tuple[float, float, str]:
    """Export once. Return CPU seconds of the process, wall seconds, and its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=source.parent) as work:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(
            [python, "-c", program, str(source), f"{work}/bundle", layout],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, done.stdout.splitlines()[-1]


def compare(source: Path, layout: str, pythons: dict[str, str], rounds: int) -> None:
    """Export with each interpreter in turn, and print the medians."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pythons}
    for _ in range(rounds):
        for name, python in pythons.items():
            cpu, wall, _ = run(python, PROGRAM, source, layout)
            times[name].append((cpu, wall))
            print(f"  {name}: {cpu:.1f} s CPU, {wall:.1f} s wall", flush=True)
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)]
        for name, pairs in times.items()
    }
    cells = " | ".join(f"{cpu:.1f} | {wall:.1f}" for cpu, wall in medians.values())
    print(f"| {source.name} {layout} | {cells} |", flush=True)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_time", description=__doc__)
    parser.add_argument("--peer", help="Python of another checkout, to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="exports of each [3]")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layouts", nargs="*", default=["forked"])
    parser.add_argument("--profile", action="store_true", help="print the time of each phase")
    args = parser.parse_args()
    peer = {"old": str(Path(args.peer).absolute())} if args.peer else {}
    pythons = peer | {"new": sys.executable}
    with tempfile.TemporaryDirectory() as work:
        for name in args.models:
            source = Path(work) / name
            MODELS[name](source)
            for layout in args.layouts:
                if not args.profile:
                    compare(source, layout, pythons, args.rounds)
                    continue
                for which, python in pythons.items():
                    phases = json.loads(run(python, PROFILED, source, layout)[2])
                    print(name, layout, which, json.dumps(phases, indent=2), flush=True)


if __name__ == "__main__":
    main()
