"""Export FLUX.1-dev's full configuration as graphs and manifest.

`python -m benchmarks.scale.flux_dev WORK`

Its 12 billion parameters stay a hole in a file; what is checked is the graph, its shapes, where it
expects its weights, and the manifest.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import jsonschema
import onnx

from benchmarks.scale.checks import external_tensors
from benchmarks.scale.measuring import measure
from benchmarks.scale.report import parts, save
from intaglio_export.support import resources

PARAMETERS = 11_901_408_320  # of the published model
BYTES = 2  # of a bfloat16
INPUTS = {
    "latent": ["base_rows", "tokens", 64],
    "text": ["base_rows", "text_length", 4096],
    "pooled": ["base_rows", 768],
    "timestep": ["base_rows"],
    "position": ["tokens", 3],
    "guidance": ["base_rows"],
    "mask": [3072],
    "ref": [3072],
    "branch": ["rows"],
    "keep": ["rows", "tokens"],
}
OUTPUTS = {"prediction": ["rows", "tokens", 64]}


def main(work: Path) -> None:
    folder = work / "flux-dev"
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    made = measure("benchmarks.scale.flux_graph", [str(folder)])
    said = json.loads(made.output)
    assert said["parameters"] == PARAMETERS
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    jsonschema.validate(manifest, resources.bundle_schema())
    graphs = sorted((folder / "transformer").glob("*.onnx"))
    numbers = {graph.name: check_graph(graph) for graph in graphs}
    # Matrices stay as they are, the exporter splits and joins biases.
    assert set(numbers.values()) == {said["in_matrices"]}, numbers
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    facts = {
        "dtype": manifest["dtype"],
        "parameters": f"{PARAMETERS:,}, of which {said['in_matrices']:,} are in matrices",
        "nodes": said["nodes"],
        "on the disk": f"{_allocated(folder) / 1e6:.0f} MB; the weights are a hole in their file",
    }
    save(
        "FLUX.1-dev",
        {"facts": facts, "tables": {"stage of the export": parts(made)}, "files": files},
    )


def check_graph(path: Path) -> int:
    """See that inputs and outputs are FLUX's and weights lie in their files.

    How many numbers of the source the graph refers to.
    """
    graph = onnx.load(path, load_external_data=False).graph
    assert _shapes(graph.input) == INPUTS, path
    assert _shapes(graph.output) == OUTPUTS, path
    referred = 0
    for name, location, offset, length in external_tensors(path):
        end = (path.parent / location).stat().st_size
        assert offset + length <= end, f"{name} ends behind its file"
        referred += length // BYTES if location.endswith(".safetensors") else 0
    return referred


def _shapes(values: object) -> dict[str, list[int | str]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values  # type: ignore[attr-defined]
    }


def _allocated(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
