"""Measure speed and write its part of docs/performance.md: `python -m benchmarks.bench -o docs`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import process, sections
from benchmarks.bench.document import write_section
from benchmarks.bench.inexact import encoders, inexact
from benchmarks.bench.models import Model, models
from benchmarks.bench.openvino_device import openvino_device
from benchmarks.bench.page import page
from benchmarks.bench.plain import OPSET
from benchmarks.bench.plots import plot
from benchmarks.bench.sections import Effort

PACKAGES = ("torch", "diffusers", "onnxruntime", "openvino", "onnx")
INEXACT = ("mid-sd3", "fashion-sd3")


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"), help="folder [docs]")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="kept models")
    parser.add_argument("--models", nargs="*", help="some only, by name")
    parser.add_argument("--rounds", type=int, default=Effort.rounds, help="of each measurement")
    parser.add_argument("--threads", type=int, default=Effort.threads, help="for every runtime")
    parser.add_argument(
        "--inexact",
        action="store_true",
        help="measure only low precision and reuse, and keep the rest of performance.json",
    )
    parser.add_argument("--remark", default="", help="what a reader should know of this run")
    args = parser.parse_args()
    effort = Effort(threads=args.threads, rounds=args.rounds)
    known = models(args.work)
    if args.inexact:
        measure_inexact(known, args.models or INEXACT, effort, args.output)
        return
    chosen = args.models or list(known)
    data = describe(effort, args.remark)
    began = time.monotonic()
    for name in chosen:
        data["models"][name] = measure(known[name], effort)
        data["minutes"] = (time.monotonic() - began) / 60
        write(data, args.output)  # after each: an interrupted run has what it measured


def measure_inexact(
    known: dict[str, Model], chosen: Iterable[str], effort: Effort, output: Path
) -> None:
    """Replace what is not exact in what is written below `output`."""
    data = json.loads((output / "performance.json").read_text("utf-8"))
    for name in chosen:
        data["models"][name] |= low_precision(known[name], effort)
        write(data, output)


def low_precision(model: Model, effort: Effort) -> dict[str, Any]:
    return {"inexact": inexact(model, effort), "encoders": encoders(model, effort)}


def describe(effort: Effort, remark: str) -> dict[str, Any]:
    """Where and with what this runs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return {
        "command": shlex.join(["python", "-m", "benchmarks.bench", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": f"{_processor()}, {cores} cores, {memory / 1e9:.0f} GB of memory",
        "versions": {"Python": platform.python_version()} | _versions(),
        "threads": effort.threads,
        "remark": remark,
        "models": {},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.machine()} ({capability})"


def measure(model: Model, effort: Effort) -> dict[str, Any]:
    """All sections of a model."""
    measured = {
        "counts": sections.arithmetic(model),
        "compare": sections.compare(model, effort),
        "start": process.start(model, effort),
        "memory": process.memory(model, effort, effort.sides),
        "openvino": openvino_device(model, effort),
    }
    last = model.blocks
    if blocks := {
        "mid-sd3": [0, last // 4, last // 2, 3 * last // 4, last - 2],
        "mid-flux": [last // 3, last - 2],  # its blocks, double or single, cost the same too
    }.get(model.name):
        measured["curve"] = sections.curve(model, effort, blocks)
    if model.name in INEXACT:
        measured |= low_precision(model, effort)
    return measured


def write(data: dict[str, Any], folder: Path) -> None:
    """Write performance.json, the figures and the section of performance.md that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "performance.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    figures = plot(data, folder / "performance")
    write_section(folder / "performance.md", "speed", page(data, figures, OPSET))


if __name__ == "__main__":
    main()
