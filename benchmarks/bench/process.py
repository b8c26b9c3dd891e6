"""Runs of the command in processes of their own: how soon they start, how much memory they take."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.bench.measuring import spread
from benchmarks.bench.models import Model
from benchmarks.bench.sections import SHIPPED, Effort, counts, middle, workload_of
from benchmarks.bench.workload import Workload
from intaglio.onnxruntime_library import onnxruntime_library

# The C++ program itself, so that nothing of Python is measured.
EXECUTABLE = Path(sysconfig.get_path("platlib")) / "intaglio/bin/intaglio"


def start(model: Model, effort: Effort) -> dict[str, Any]:
    """Seconds from exec to the first call of the network, files cached, and of reading the weights.

    One step of CFG+DG. The shipped model is given a prompt, and so loads and runs its text
    encoders; a model of random weights prompt embeddings.
    """
    shipped = SHIPPED / model.name
    prompted = shipped.is_dir()
    bundle = shipped if prompted else model.bundle("forked", middle(model))
    weights = next((bundle / "transformer").glob("*.data"))
    starts, prepacked, reads = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        embeds, report = Path(folder) / "prompt.safetensors", Path(folder) / "report.json"
        save_file(_embeds(workload_of(model, effort)), embeds)
        given = ["--prompt", "a dress"] if prompted else ["--prompt-embeds", embeds]
        line = [*_command("generate"), bundle, *given, "--steps", "1"]
        line += ["--cfg-scale", "3", "--dg-scale", "1", "--threads", str(effort.threads)]
        line += ["--device", "cpu", "--report", report, "-o", Path(folder) / "image.png"]
        for _ in range(effort.rounds):
            for flags, seconds in (([], starts), (["--prepack"], prepacked)):
                subprocess.run([*line, *flags], check=True, capture_output=True)
                seconds.append(json.loads(report.read_text())["seconds"]["start_to_first_step"])
            reads.append(_read(weights))
    return {
        "given": "a prompt" if prompted else "prompt embeddings",
        "seconds": spread(starts),
        "prepacked_seconds": spread(prepacked),
        "reading_weights": spread(reads),
        "weights_bytes": weights.stat().st_size,
    }


def _embeds(workload: Workload) -> dict[str, Any]:
    names = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    return {
        prefix + names[role]: value[row : row + 1].contiguous()
        for row, prefix in ((0, "negative_"), (1, ""))
        for role, value in workload.text.items()
    }


def _command(subcommand: str) -> list[str | Path]:
    return [EXECUTABLE, subcommand, "--onnxruntime", onnxruntime_library() or ""]


def _read(path: Path) -> float:
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 24)
        while file.readinto(buffer):
            pass
    return time.perf_counter() - began


def memory(model: Model, effort: Effort, sides: tuple[int, ...]) -> list[dict[str, Any]]:
    """The peak of a process that runs a step of every mode, by image tokens."""
    bundle = model.bundle("forked", middle(model))
    pixels = workload_of(model, effort).pixels // model.tokens
    rows = []
    for side in sides:
        size = str(side * pixels)
        line = [*_command("bench"), bundle, "--steps", "1", "--repeats", "1", "--json"]
        line += ["--height", size, "--width", size, "--threads", str(effort.threads)]
        done = subprocess.run(line, check=True, capture_output=True, text=True)
        told = json.loads(done.stdout)
        count = counts(model, "forked", middle(model), "cfg+dg", side)
        rows.append(
            {
                "tokens": side**2,
                "peak_bytes": told["peak_memory_bytes"],
                "weights_bytes": told["weights_bytes"],
                "activation_bytes": count["activation_bytes"],
            }
        )
    return rows
