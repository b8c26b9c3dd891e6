"""Print the memory plans of full configurations, which have no weights.

`python -m benchmarks.scale.plans WORK [NAME ...]`

The bundles below WORK are those of `unread_export`, whose weights are holes in files. The plan is
the one of `intaglio inspect --plan` for the CPU: all parts together, and each part let go before
the next one is loaded, which is the smallest `--max-memory`. The program itself comes on top, which
is 0.1 GB of the command.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from benchmarks.scale.configurations import CONFIGURATIONS
from benchmarks.scale.measuring import measure
from benchmarks.scale.unread_weights import NAMES
from intaglio import _core
from intaglio.onnxruntime_library import onnxruntime_library

SIDES = (512, 1024)


def main(work: Path, *names: str) -> None:
    for name in names or NAMES:
        folder = work / name
        if not folder.exists():
            measure("benchmarks.scale.unread_export", [name, str(folder)])
            add_vae(folder, name)
        for side in SIDES:
            report(folder, name, side)


def add_vae(folder: Path, name: str) -> None:
    """Give the bundle files of the size of the VAE's, which `unread_export` does not trace.

    Its weights stay float32. Its graphs are empty.
    """
    vae = CONFIGURATIONS[name].networks()["vae"]
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    for part in ("decoder", "encoder"):
        parameters = sum(p.numel() for p in getattr(vae, part).parameters())
        sizes = dict.fromkeys(("model.onnx", "model.cpu.onnx", "model.decomposed.onnx"), 0)
        for file, size in (sizes | {"weights.data": 4 * parameters}).items():
            path = folder / f"vae_{part}" / file
            path.parent.mkdir(exist_ok=True)
            path.touch()
            os.truncate(path, size)
            digest = "0" * 64 if size else hashlib.sha256().hexdigest()
            manifest["files"][f"vae_{part}/{file}"] = {"bytes": size, "sha256": digest}
    (folder / "bundle.json").write_text(json.dumps(manifest))


def report(folder: Path, name: str, side: int) -> None:
    # A pipeline hashes weights only before it hands something out.
    options = _core.BackendOptions(device="cpu", onnxruntime_library=onnxruntime_library())
    bundle = _core.Pipeline.open(folder, options).bundle
    size = {"height": side, "width": side}
    together = _core.plan_memory(bundle, size)
    largest = max(part.weights + part.activations for part in together.phases)
    limit = together.program + largest
    in_turn = _core.plan_memory(bundle, size, max_memory=str(limit))
    print(f"{name} at {side} x {side}, {bundle.dtype}:")
    for part in together.phases:
        print(f"  {part.part}: {part.weights / 1e9:.2f} GB + {part.activations / 1e9:.2f} GB")
    peaks = [(plan.peak - plan.program) / 1e9 for plan in (together, in_turn)]
    print(f"  together {peaks[0]:.2f} GB, in turn {peaks[1]:.2f} GB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
