"""Draw on WebGPU with the layer beside this file, and mark each step in the log of copies.

`python -m tests.vulkan.draw BUNDLE LIBRARY LOG OUT.npy [MAX_MEMORY]` writes the latents of one
image. It runs in a process of its own, because Vulkan loads layers when a process uses it first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import intaglio

# Three steps with both guidances.
DRAWN: dict[str, Any] = {
    "prompt": "the dark boot", "steps": 3, "seeds": 5, "cfg_scale": 3.0, "dg_scale": 1.5,
}  # fmt: skip


def main(bundle: str, library: str, log: str, out: str, max_memory: str | None = None) -> None:
    """Draw, and write the latents."""

    def mark(step: intaglio.Step) -> None:
        with Path(log).open("a", encoding="utf-8") as lines:
            print("step", step.step, file=lines)

    pipeline = intaglio.Pipeline.open(
        bundle, device="webgpu", onnxruntime=library, threads=1, max_memory=max_memory
    )
    np.save(out, np.asarray(pipeline.generate(**DRAWN, on_step=mark).latents))


if __name__ == "__main__":
    main(*sys.argv[1:])
