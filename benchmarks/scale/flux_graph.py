"""Export FLUX.1-dev's graphs over weights that are never read.

`python -m benchmarks.scale.flux_graph FOLDER`

The weights are a hole in a .safetensors file: diffusers maps it, the graphs refer to it by offset.
What the product would write anew, transposed weights, stays a Transpose of the source's weight.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import onnx_ir as ir
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers import FluxTransformer2DModel as Transformer

from benchmarks.scale.configurations import clip_tokenizer, flux_dev
from benchmarks.scale.folders import header, weights_name
from benchmarks.scale.measuring import MARK
from intaglio_export.adapters import FluxAdapter
from intaglio_export.bundle.manifest import BundleParts, Suppression, build_manifest, write_manifest
from intaglio_export.bundle.writing import make_graph, save_graph
from intaglio_export.calibration.recipes import find_recipe
from intaglio_export.graph_specs import ExportUnit
from intaglio_export.networks.encoders import vae_decoder_unit, vae_encoder_unit
from intaglio_export.networks.transformer_graphs import transformer_units
from intaglio_export.options import ModelSettings
from intaglio_export.passes.cast_matmuls_to_float32 import cast_matmuls_to_float32
from intaglio_export.passes.decompose import decompose
from intaglio_export.passes.share_weights import share_weights
from intaglio_export.precision import store_weights_in
from intaglio_export.support import resources

DTYPE = torch.bfloat16
LENGTH = 512
_HEAD = 8  # bytes that say how long the JSON of a .safetensors file is


def main(folder: str) -> None:
    work = Path(folder)
    print(MARK + "loading")
    source = write_source(work / "transformer")
    adapter = load(source.parent)
    recipe = find_recipe("flux", adapter.config, adapter.pipeline.scheduler.config)
    assert recipe is not None
    block = len(adapter.blocks()) // 2
    units = transformer_units(adapter, "forked", block)
    print(MARK + "tracing")
    models = {name: make_graph(unit) for name, unit in units.items()}
    print(MARK + "writing and checking graphs")
    for model in models.values():
        leave_weights(model, source)
    share_weights(list(models.values()), source.parent)
    for name, model in models.items():
        spec = units[name].spec
        save_graph(model, work / spec.path)
        assert spec.cpu is not None
        assert spec.decomposed is not None
        widened = ir.from_proto(ir.to_proto(model))
        cast_matmuls_to_float32(widened)
        save_graph(widened, work / spec.cpu)
        decomposed = ir.load(work / spec.path)
        decompose(decomposed)
        save_graph(decomposed, work / spec.decomposed)
    print(MARK + "writing the manifest")
    channels = list(recipe.settings.channels or ())
    assert all(isinstance(channel, int) for channel in channels)
    suppression = Suppression(block, [int(c) for c in channels], "settings", False, [])
    manifest_of(adapter, units, suppression, work, source)
    parameters = list(adapter.transformer.parameters())
    said = {
        "parameters": sum(p.numel() for p in parameters),
        "in_matrices": sum(p.numel() for p in parameters if p.ndim > 1),
        "nodes": len(models["forked"].graph),
    }
    print(json.dumps(said))


def write_source(folder: Path) -> Path:
    """The transformer's folder as diffusers has it; its weights take no room on the disk."""
    network = flux_dev()
    folder.mkdir(parents=True)
    network.save_config(folder)
    path = folder / weights_name(network)
    with path.open("wb") as file:
        file.write(header(network, DTYPE))
        file.truncate(file.tell() + DTYPE.itemsize * sum(p.numel() for p in network.parameters()))
    return path


def load(folder: Path) -> FluxAdapter:
    """The adapter over mapped weights; the VAE is a configuration only, text encoders are none."""
    transformer = Transformer.from_pretrained(folder, dtype=DTYPE, local_files_only=True)
    transformer.eval().requires_grad_(False)
    store_weights_in(transformer, DTYPE)
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipeline = FluxPipeline(
        scheduler, vae, None, clip_tokenizer(), None, clip_tokenizer(), transformer
    )
    return FluxAdapter(pipeline, DTYPE)


def leave_weights(model: ir.Model, source: Path, dtype: ir.DataType = ir.DataType.BFLOAT16) -> None:
    """Let initializers that `source` holds in `dtype` as they are refer to it."""
    with source.open("rb") as file:
        length = int.from_bytes(file.read(_HEAD), "little")
        entries = json.loads(file.read(length))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        assert value.name is not None
        entry = entries.get(value.name.removeprefix("transformer."))
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


def manifest_of(
    adapter: FluxAdapter,
    units: dict[str, ExportUnit],
    suppression: Suppression,
    work: Path,
    source: Path,
) -> None:
    """Write the manifest; the digest of the hole is left out."""
    hidden = source.rename(work.parent / source.name)
    parts = BundleParts(
        layout="forked",
        dtype="bfloat16",
        source="FLUX.1-dev",
        graphs={name: unit.spec for name, unit in units.items()},
        encoders={},
        vae_decoder=vae_decoder_unit(adapter).spec,
        vae_encoder=vae_encoder_unit(adapter).spec,
        suppression=suppression,
        prompt=adapter.prompt(LENGTH),
        max_abs=[],
        settings=ModelSettings(max_sequence_length=LENGTH),
    )
    manifest = build_manifest(adapter, parts, work)
    hidden.rename(source)
    name = source.relative_to(work).as_posix()
    manifest["files"][name] = {"bytes": source.stat().st_size, "sha256": "0" * 64}
    write_manifest(manifest, work)
    jsonschema.validate(manifest, resources.bundle_schema())


if __name__ == "__main__":
    main(*sys.argv[1:])
