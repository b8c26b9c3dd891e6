"""Export a full configuration's graphs over weights that are never read.

`python -m benchmarks.scale.unread_export NAME FOLDER`

The weights are holes in .safetensors files, which diffusers and transformers map; the graphs refer
to them by offset. What the product would write anew, transposed weights, stays a Transpose of the
source's weight. Everything else is the product's own export, without running anything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch

from benchmarks.scale.configurations import CONFIGURATIONS
from benchmarks.scale.folders import write_pipeline
from benchmarks.scale.measuring import MARK
from intaglio_export.adapters import Adapter
from intaglio_export.bundle import writing
from intaglio_export.bundle.manifest import BundleParts, Suppression, build_manifest, write_manifest
from intaglio_export.bundle.tokenizer_tables import write_table
from intaglio_export.graph_specs import ExportUnit
from intaglio_export.networks.encoders import text_encoder_unit, vae_decoder_unit, vae_encoder_unit
from intaglio_export.networks.transformer_graphs import transformer_units
from intaglio_export.options import ModelSettings
from intaglio_export.sources import open_source
from intaglio_export.support.memory import collecting_on_demand
from intaglio_export.support.patching import replaced

DTYPE = torch.bfloat16
LENGTH = 512
_HEAD = 8  # bytes that say how long the JSON of a .safetensors file is


def main(name: str, folder: str) -> None:
    work = Path(folder)
    print(MARK + "loading")
    configuration = CONFIGURATIONS[name]
    networks = configuration.networks()
    write_pipeline(
        work,
        configuration.pipeline,
        networks,
        configuration.others(),
        DTYPE,
        options=configuration.options,
        hollow=True,
    )
    encodes = "text_encoder" in networks
    adapter = open_source(work, DTYPE, text_encoders="all" if encodes else "none").adapter
    graphs, texts = units_of(adapter)
    used = {}
    with collecting_on_demand():
        for units in (list(graphs.values()), *([unit] for unit in texts.values())):
            part = Path(units[0].spec.path).parent.name
            used[part] = in_matrices(units[0].module)
            write_graphs(units, work)
    print(MARK + "writing the manifest")
    write_bundle(adapter, name, graphs, texts, work)
    parameters = {
        part: sum(p.numel() for p in network.parameters())
        for part, network in networks.items()
        if part in used
    }
    print(json.dumps({"parameters": parameters, "in_matrices": used}))


def units_of(adapter: Adapter) -> tuple[dict[str, ExportUnit], dict[str, ExportUnit]]:
    """Return the units of the transformer and of the text encoders."""
    prompt = adapter.prompt(LENGTH)
    assert prompt is not None
    encoders = prompt.encoders if adapter.has_encoders else {}
    texts = {
        name: text_encoder_unit(getattr(adapter.pipeline, name), name, layout, DTYPE)
        for name, layout in encoders.items()
    }
    return transformer_units(adapter, "forked", len(adapter.blocks()) // 2), texts


def in_matrices(module: torch.nn.Module) -> int:
    """Return how many numbers of the source the graphs of `module` refer to.

    Matrices stay as they are; the exporter stores vectors in float32.
    """
    return sum(p.numel() for p in module.parameters() if p.dtype == DTYPE)


def write_graphs(units: Sequence[ExportUnit], work: Path) -> None:
    """Trace, edit and save the graphs of one folder, which refer to its weights."""
    (source,) = (work / units[0].spec.path).parent.glob("*.safetensors")
    leaving = partial(leave_weights, source=source)
    with replaced([(writing, "transpose_weights", leaving)]):
        writing._write_folder(units, work, lambda what: print(MARK + what))


def leave_weights(model: ir.Model, source: Path, dtype: ir.DataType = ir.DataType.BFLOAT16) -> None:
    """Let initializers that `source` holds in `dtype` as they are refer to it."""
    with source.open("rb") as file:
        length = int.from_bytes(file.read(_HEAD), "little")
        entries = json.loads(file.read(length))
    # A language model with its head has its decoder under this name, which the graph does not have.
    entries = {name.removeprefix("model."): entry for name, entry in entries.items()}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        assert value.name is not None
        entry = entries.get(value.name.partition(".")[2])  # after transformer. or decoder.
        if entry is None or tensor.dtype != dtype:
            continue
        shape = tuple(tensor.shape.numpy())
        assert shape == tuple(entry["shape"]), value.name
        begin, end = entry["data_offsets"]
        assert end - begin == tensor.nbytes
        value.const_value = ir.ExternalTensor(
            source.name,
            _HEAD + length + begin,
            end - begin,
            tensor.dtype,
            shape=ir.Shape(shape),
            name=value.name,
            base_dir=source.parent,
        )


def write_bundle(
    adapter: Adapter,
    name: str,
    graphs: dict[str, ExportUnit],
    texts: dict[str, ExportUnit],
    work: Path,
) -> None:
    """Write the tokenizers' tables and the manifest; the digests of the holes are left out."""
    prompt = adapter.prompt(LENGTH)
    assert prompt is not None
    for text in texts:
        layout = prompt.encoders[text]
        tokenizer = getattr(adapter.pipeline, layout.tokenizer)
        write_table(tokenizer, LENGTH, work / layout.tokenizer, template=layout.template)
    encoder = vae_encoder_unit(adapter).spec if adapter.image_to_image else None
    parts = BundleParts(
        layout="forked",
        dtype="bfloat16",
        source=name,
        graphs={key: unit.spec for key, unit in graphs.items()},
        encoders={key: unit.spec for key, unit in texts.items()},
        vae_decoder=vae_decoder_unit(adapter).spec,
        vae_encoder=encoder,
        suppression=Suppression(len(adapter.blocks()) // 2, [0], "list", False, []),
        prompt=prompt,
        max_abs=[],
        settings=ModelSettings(max_sequence_length=LENGTH),
    )
    aside = {path: path.rename(f"{work}-{path.parent.name}") for path in _weights(work)}
    manifest = build_manifest(adapter, parts, work)
    for path, moved in aside.items():
        moved.rename(path)
        entry = {"bytes": path.stat().st_size, "sha256": "0" * 64}
        manifest["files"][path.relative_to(work).as_posix()] = entry
    write_manifest(manifest, work)


def _weights(work: Path) -> list[Path]:
    return sorted(work.rglob("*.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
