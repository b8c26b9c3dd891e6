"""Take configurations with random weights from a folder to a picture.

`python -m benchmarks.scale.whole WORK [NAME ...]`

Writes random weights below WORK, exports them, checks the bundle's structure, opens it with the
runtime, encodes a prompt and takes one step; each in a process of its own, whose memory is watched.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from benchmarks.scale.measuring import measure
from benchmarks.scale.report import parts, row, save

# The type of matrix products, and a channel: random weights have no massive one to be found.
NAMES = {
    "sd3-medium": ("float16", "810"),
    "Z-Image at a quarter of its depth": ("bfloat16", "0"),
}
LIMIT_GB = 16


def main(work: Path, *names: str) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for name in names or NAMES:
        run(work / name, name, *NAMES[name])


def run(source: Path, name: str, dtype: str, channels: str) -> None:
    """Run all stages of one configuration, and save what was measured."""
    bundle = source.with_name(f"{name}.bundle")
    for folder in (source, bundle):
        shutil.rmtree(folder, ignore_errors=True)
    written = measure("benchmarks.scale.source", [name, str(source), dtype])
    runs = {"write random weights": written}
    arguments = [str(source), str(bundle), dtype, channels]
    exported = runs["export"] = measure("benchmarks.scale.export_stages", arguments)
    shutil.rmtree(source)
    runs["check the structure"] = measure("benchmarks.scale.check_bundle", [str(bundle)])
    stepped = runs["open, encode and step"] = measure(
        "benchmarks.scale.runtime_step", [str(bundle)]
    )
    manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
    sizes = {path: entry["bytes"] for path, entry in manifest["files"].items()}
    weights = sum(size for path, size in sizes.items() if path.endswith(".data"))
    limit = 1.3 * weights + 2e9
    errors = json.loads(exported.output)["errors"]
    facts = {
        "dtype": dtype,
        "parameters": written.output.strip().replace("\n", ", "),
        "prompts": f"{manifest['prompt']['max_sequence_length']} tokens",
        "weights of the bundle": f"{weights / 1e9:.2f} GB",
        "peak of the export": f"{exported.peak / 1e9:.2f} GB, and at most"
        f" 1.3 times the weights plus 2 GB is {limit / 1e9:.2f} GB",
        "largest relative error": f"{max(errors.values()):.1e}",
    }
    tables = {
        "stage": [row(stage, measured) for stage, measured in runs.items()],
        "of the export": parts(exported),
        "of the step": parts(stepped),
    }
    save(name, {"facts": facts, "tables": tables, "files": sizes})
    shutil.rmtree(bundle)
    assert exported.peak <= limit, "the export takes too much memory"
    assert all(measured.peak <= LIMIT_GB * 1e9 for measured in runs.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
