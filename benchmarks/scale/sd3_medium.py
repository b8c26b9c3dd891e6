"""Take SD3-medium's full configuration from a folder to a picture.

`python -m benchmarks.scale.sd3_medium WORK`

Writes 4 GB of random float16 weights below WORK, exports them, checks the bundle's structure, opens
it with the runtime and takes one step; each in a process of its own, whose memory is watched.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from benchmarks.scale.measuring import measure
from benchmarks.scale.report import parts, row, save

DTYPE = "float16"
CHANNELS = "810"  # random weights have no massive channel to be found
LIMIT_GB = 16


def main(work: Path) -> None:
    source, bundle = work / "sd3-medium", work / "sd3-medium.bundle"
    for folder in (source, bundle):
        shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    runs = {"write random weights": measure("benchmarks.scale.sd3_source", [str(source)])}
    arguments = [str(source), str(bundle), DTYPE, CHANNELS]
    exported = runs["export"] = measure("benchmarks.scale.export_stages", arguments)
    runs["check the structure"] = measure("benchmarks.scale.check_bundle", [str(bundle)])
    stepped = runs["open and step"] = measure("benchmarks.scale.runtime_step", [str(bundle)])
    files = json.loads((bundle / "bundle.json").read_text("utf-8"))["files"]
    sizes = {name: entry["bytes"] for name, entry in files.items()}
    weights = sum(size for name, size in sizes.items() if name.endswith(".data"))
    limit = 1.3 * weights + 2e9
    errors = json.loads(exported.output)["errors"]
    facts = {
        "dtype": DTYPE,
        "parameters": runs["write random weights"].output.strip().replace("\n", ", "),
        "weights of the bundle": f"{weights / 1e9:.2f} GB",
        "peak of the export": f"{exported.peak / 1e9:.2f} GB, and at most"
        f" 1.3 times the weights plus 2 GB is {limit / 1e9:.2f} GB",
        "largest relative error": f"{max(errors.values()):.1e}",
    }
    tables = {
        "stage": [row(name, run) for name, run in runs.items()],
        "of the export": parts(exported),
        "of the step": parts(stepped),
    }
    save("sd3-medium", {"facts": facts, "tables": tables, "files": sizes})
    assert exported.peak <= limit, "the export takes too much memory"
    assert all(run.peak <= LIMIT_GB * 1e9 for run in runs.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
