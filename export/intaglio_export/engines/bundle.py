"""Read the bundle that engines are built for: its manifest and its graphs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from intaglio_export.bundle.output_folder import MANIFEST, SCHEMA_VERSION
from intaglio_export.errors import ExportError
from intaglio_export.support import resources

_FOUR_BITS = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1}


@dataclass(frozen=True)
class Component:
    """One graph of the bundle, which becomes one engine.

    `kind` is forked, base, degraded, conditioning, text_encoder, vae_decoder or vae_encoder.
    `name` is the same, or the name of a text encoder. `inputs` and `outputs` are the manifest's.
    """

    kind: str
    folder: Path
    path: str
    name: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]

    @property
    def is_transformer(self) -> bool:
        """Whether the graph has blocks and an image stream."""
        return self.kind in ("forked", "base", "degraded")

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The ONNX graph without the weights in other files.

        Raises:
            ExportError: the file is not an ONNX graph.
        """
        path = self.folder / self.path
        try:
            return onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's DecodeError has no public name
            raise ExportError(f"{path} is not an ONNX graph ({error}); export again.") from error

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights in an engine, which stores weights in the type they are cast to."""
        casts = {n.input[0]: n.attribute[0].i for n in self.graph.graph.node if n.op_type == "Cast"}
        return sum(
            math.prod(tensor.dims) * _item_bits(casts.get(tensor.name, tensor.data_type)) // 8
            for tensor in self._initializers(integer=False)
        )

    @property
    def table_bytes(self) -> int:
        """Bytes of integer tables, such as T5's relative positions, which an engine may fold."""
        return sum(
            math.prod(tensor.dims) * _item_bits(tensor.data_type) // 8
            for tensor in self._initializers(integer=True)
        )

    def _initializers(self, integer: bool) -> Iterator[onnx.TensorProto]:
        nodes = self.graph.graph.node
        quantized = {node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
        for tensor in self.graph.graph.initializer:
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind
            if (kind in "iub" and tensor.name not in quantized) == integer:
                yield tensor

    @cached_property
    def files(self) -> list[str]:
        """The paths of the graph and then of its weights files."""
        folder = Path(self.path).parent
        weights = {
            (folder / ExternalDataInfo(tensor).location).as_posix()
            for tensor in self.graph.graph.initializer
            if uses_external_data(tensor)
        }
        return [self.path, *sorted(weights)]


def _item_bits(dtype: int) -> int:
    if dtype in _FOUR_BITS:  # two of them are stored in a byte
        return 4
    return 8 * int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of the bundle in `folder` and validate it.

    Raises:
        ExportError: there is no manifest, or it is damaged or newer than this version.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ExportError(f"The bundle {folder} does not exist.")
    if not path.is_file():
        raise ExportError(f"{folder} is not a bundle (it has no {MANIFEST}).")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON ({error}); export again.") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ExportError(
            f"{path} has schema {version}, made by a newer Intaglio (this one reads"
            f" up to {SCHEMA_VERSION}); update Intaglio or export again."
        )
    validator = jsonschema.Draft202012Validator(resources.bundle_schema())
    wrong = jsonschema.exceptions.best_match(validator.iter_errors(manifest))
    if wrong is not None:
        where = "/".join(map(str, wrong.absolute_path)) or "the top level"
        raise ExportError(f"{path}: {wrong.message} (at {where}); export again.")
    return manifest


def components(folder: Path, manifest: dict[str, Any]) -> list[Component]:
    """Return the graphs of the bundle, those of the transformer first.

    Raises:
        ExportError: a file is missing or has another size than in the manifest, or a graph has
            other inputs or outputs.
    """
    found = [
        Component(kind, folder, graph["path"], name, graph["inputs"], graph["outputs"])
        for kind, name, graph in _graphs(manifest)
    ]
    for component in found:
        _check_size(folder, manifest, component.path)  # before the graph is read
        for path in component.files[1:]:
            _check_size(folder, manifest, path)
        _check_tensors(component)
    return found


def _graphs(manifest: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, graph in manifest["transformer"]["graphs"].items():
        yield name, name, graph
    for name, encoder in manifest.get("prompt", {}).get("encoders", {}).items():
        if "quantized" not in encoder:  # those run on the CPU beside the engines
            yield "text_encoder", name, encoder["graph"]
    for name in ("vae_decoder", "vae_encoder"):
        if name in manifest:
            yield name, name, manifest[name]


def _check_size(folder: Path, manifest: dict[str, Any], path: str) -> None:
    file = manifest["files"].get(path)
    if file is None or not (folder / path).is_file():
        raise ExportError(f"The bundle {folder} lacks {path}; export again.")
    if (folder / path).stat().st_size != file["bytes"]:
        raise ExportError(
            f"{folder / path} is not the file that {MANIFEST} describes (its size differs);"
            " export again."
        )


def _check_tensors(component: Component) -> None:
    graph = component.graph.graph
    for tensors, values in ((component.inputs, graph.input), (component.outputs, graph.output)):
        listed = {t["name"]: in_words(t["dtype"], t["axes"]) for t in tensors}
        real = {value.name: _value_in_words(value) for value in values}
        for name in (*listed, *real):
            if listed.get(name) != real.get(name):
                raise ExportError(
                    f"{component.folder / MANIFEST} does not fit {component.path}: there {name} is"
                    f" {listed.get(name, 'missing')}, and in the graph it is"
                    f" {real.get(name, 'missing')}; export again."
                )


def in_words(dtype: str, axes: Sequence[int | str]) -> str:
    """Describe a tensor, as in `float32 of rows x 4 x 16`."""
    return f"{dtype} of {' x '.join(map(str, axes)) or 'no axes'}"


def _value_in_words(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return in_words(dtype, [axis.dim_param or axis.dim_value for axis in tensor.shape.dim])


def check_contents(folder: Path, manifest: dict[str, Any], path: str) -> None:
    """Check the SHA-256 of a file against the manifest.

    Raises:
        ExportError: it differs.
    """
    with (folder / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != manifest["files"][path]["sha256"]:
        raise ExportError(
            f"{folder / path} is not the file that {MANIFEST} describes (its SHA-256 differs);"
            " export again."
        )
