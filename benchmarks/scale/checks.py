"""What can be said of a bundle without running it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from intaglio_export.support import resources

LARGEST_MESSAGE = 2 * 1024**3  # bytes of a protobuf message
LARGEST_INLINE = 1024


def check_bundle(bundle: Path) -> dict[str, Any]:
    """The manifest, seen to fit its schema, its files and its graphs.

    Raises:
        AssertionError, onnx.checker.ValidationError, jsonschema.ValidationError: something is not
            as it should be.
    """
    manifest: dict[str, Any] = json.loads((bundle / "bundle.json").read_text("utf-8"))
    jsonschema.validate(manifest, resources.bundle_schema())
    for name, entry in manifest["files"].items():
        assert (bundle / name).stat().st_size == entry["bytes"], name
    for path in sorted(bundle.rglob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)
        assert path.stat().st_size < LARGEST_MESSAGE, path
    for folder in sorted({path.parent for path in bundle.rglob("*.onnx")}):
        _check_stored_once(folder)
    return manifest


def _check_stored_once(folder: Path) -> None:
    """Weights lie inside the file, apart from each other, and no two are equal."""
    placed: dict[tuple[int, int], str] = {}
    weights = folder / "weights.data"
    for graph in folder.glob("*.onnx"):
        for name, location, offset, length in external_tensors(graph):
            assert location == weights.name, f"{name} is in {location}"
            placed[offset, length] = name
    end = 0
    digests: dict[str, str] = {}
    with weights.open("rb") as file:
        for (offset, length), name in sorted(placed.items()):
            assert offset >= end, f"{name} overlaps"
            end = offset + length
            assert end <= weights.stat().st_size, f"{name} ends behind the file"
            file.seek(offset)
            digest = hashlib.sha256(file.read(length)).hexdigest()
            assert digest not in digests, f"{name} is stored twice, as {digests[digest]}"
            digests[digest] = name
    assert end == weights.stat().st_size, "the file holds more than the weights"


def external_tensors(graph: Path) -> Iterator[tuple[str, str, int, int]]:
    """Name, location, offset and length of each; others are small."""
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            yield tensor.name, info.location, int(info.offset or 0), int(info.length)
        else:
            assert tensor.ByteSize() < 2 * LARGEST_INLINE, f"{tensor.name} is in the graph"
