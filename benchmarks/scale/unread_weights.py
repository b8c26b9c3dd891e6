"""Export full configurations as graphs and manifests, without reading or writing their weights.

`python -m benchmarks.scale.unread_weights WORK [NAME ...]`

The parameters, billions of them, stay holes in files. What is checked are the graphs, where they
expect their weights, the manifest, and that the memory stays below LIMIT.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jsonschema
import onnx

from benchmarks.scale.checks import external_tensors
from benchmarks.scale.measuring import measure
from benchmarks.scale.report import parts, save
from intaglio_export.support import resources

NAMES = ("FLUX.1-dev", "FLUX.2-klein-4B", "Z-Image")
# The published models' own numbers of parameters.
PARAMETERS = {
    ("FLUX.1-dev", "transformer"): 11_901_408_320,
    ("FLUX.2-klein-4B", "text_encoder"): 4_022_468_096,
    ("Z-Image", "text_encoder"): 4_022_468_096,
    ("Z-Image", "transformer"): 6_154_908_736,
}
BYTES = 2  # of a bfloat16
LIMIT = 3e9  # bytes, of resident memory


def main(work: Path, *names: str) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for name in names or NAMES:
        export(work / name, name)


def export(folder: Path, name: str) -> None:
    """Export one configuration, check its bundle, and save what was measured."""
    shutil.rmtree(folder, ignore_errors=True)
    made = measure("benchmarks.scale.unread_export", [name, str(folder)])
    said = json.loads(made.output)
    for part, count in said["parameters"].items():
        assert PARAMETERS.get((name, part), count) == count, part
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    jsonschema.validate(manifest, resources.bundle_schema())
    for part, numbers in said["in_matrices"].items():
        assert referred(folder / part) == numbers, part
    for graph in graphs_of(manifest):
        check_graph(folder / graph["path"], graph)
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".onnx", ".data", ".safetensors")
    }
    facts = {
        "dtype": manifest["dtype"],
        **{
            f"parameters of the {part}": f"{count:,}, of which the graphs use"
            f" {said['in_matrices'][part]:,} in matrices"
            for part, count in said["parameters"].items()
        },
        "on the disk": f"{_allocated(folder) / 1e6:.0f} MB; the weights are holes in their files",
    }
    save(name, {"facts": facts, "tables": {"stage of the export": parts(made)}, "files": files})
    assert made.peak <= LIMIT, "the export takes too much memory"
    shutil.rmtree(folder)


def graphs_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the transformer's and the text encoders' graphs."""
    encoders = manifest["prompt"]["encoders"].values()
    return [*manifest["transformer"]["graphs"].values(), *(entry["graph"] for entry in encoders)]


def check_graph(path: Path, entry: dict[str, Any]) -> None:
    """See that the graph has the inputs and outputs of its entry in the manifest."""
    graph = onnx.load(path, load_external_data=False).graph
    for values, expected in ((graph.input, entry["inputs"]), (graph.output, entry["outputs"])):
        axes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in values
        }
        assert axes == {tensor["name"]: tensor["axes"] for tensor in expected}, path


def referred(folder: Path) -> int:
    """Return how many numbers of the source the graphs of a folder refer to, each counted once."""
    places = set()
    for path in folder.glob("*.onnx"):
        for name, location, offset, length in external_tensors(path):
            end = (folder / location).stat().st_size
            assert offset + length <= end, f"{name} ends behind its file"
            if location.endswith(".safetensors"):
                places.add((offset, length))
    return sum(length for _, length in places) // BYTES


def _allocated(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
