"""Draw bundles with one library of ONNX Runtime, in a process of its own: it can hold one only.

`python -m tests.library_runs LIBRARY OUT.npz` reads a JSON list of runs from stdin. Each has a
name, a bundle, a device, a precision, and the options of `Pipeline.generate`. It writes the final
latents of each run by its name, and prints as JSON which nodes ran where.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import intaglio

Placements = dict[str, dict[str, Any]]  # by graph


def main(library: str, out: str) -> None:
    """Draw everything and write it."""

    @cache
    def opened(bundle: str, device: str, precision: str) -> intaglio.Pipeline:
        return intaglio.Pipeline.open(
            bundle, device=device, precision=precision, onnxruntime=library, threads=1
        )

    latents: dict[str, np.ndarray] = {}
    placements: dict[str, Placements] = {}
    for run in json.load(sys.stdin):
        pipeline = opened(run["bundle"], run["device"], run["precision"])
        latents[run["name"]] = np.asarray(pipeline.generate(**run["options"]).latents)
        placements[run["name"]] = {
            found.graph: {"nodes": found.nodes, "elsewhere": found.elsewhere}
            for found in pipeline.placements
        }
    np.savez(Path(out), **latents)
    print(json.dumps(placements))


if __name__ == "__main__":
    main(*sys.argv[1:])
