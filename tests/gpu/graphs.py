"""Write bundles of SD3-medium's and FLUX.1-dev's size without weights, for tests/gpu/run.sh.

`python -m tests.gpu.graphs FOLDER`

The graphs refer to a file of weights that tests/gpu/weights.py makes where they run. There are no
text encoders, and the VAE is a small one, because the loop alone is measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx_ir as ir
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
)

from benchmarks.scale.configurations import clip_tokenizer, flux_dev, sd3_medium
from benchmarks.scale.folders import header, weights_name
from benchmarks.scale.unread_export import leave_weights
from intaglio_export.adapters import FluxAdapter, SD3Adapter
from intaglio_export.adapters.base import Adapter
from intaglio_export.bundle.manifest import BundleParts, Suppression, build_manifest, write_manifest
from intaglio_export.bundle.writing import make_graph, save_graph
from intaglio_export.graph_specs import ExportUnit, GraphSpec
from intaglio_export.networks.encoders import vae_decoder_unit, vae_encoder_unit
from intaglio_export.networks.transformer_graphs import transformer_units
from intaglio_export.options import ModelSettings
from intaglio_export.passes.cast_matmuls_to_float32 import cast_matmuls_to_float32
from intaglio_export.passes.share_weights import share_weights
from intaglio_export.precision import store_weights_in

DTYPE = torch.float16
NETWORKS = {"sd3-medium": lambda: sd3_medium()["transformer"], "flux-dev": flux_dev}


def main(folder: str) -> None:
    """Write one bundle after the other."""
    for name in NETWORKS:
        write(Path(folder) / name, name)


def write(work: Path, name: str) -> None:
    """Write one bundle, and weights.json, which says what file of weights it lacks."""
    network = NETWORKS[name]()
    source = work / "transformer" / weights_name(network)
    source.parent.mkdir(parents=True)
    network.save_config(source.parent)
    head = header(network, DTYPE)
    with source.open("wb") as file:  # a hole, which takes no room on the disk
        file.write(head)
        numbers = sum(tensor.numel() for tensor in network.state_dict().values())
        file.truncate(len(head) + DTYPE.itemsize * numbers)
    adapter = load(name, type(network).from_pretrained(source.parent, dtype=DTYPE))
    units = transformer_units(adapter, "forked", len(adapter.blocks()) // 2)
    models = {kind: make_graph(unit) for kind, unit in units.items()}
    for model in models.values():
        leave_weights(model, source, ir.DataType.FLOAT16)
    share_weights(list(models.values()), source.parent)
    for kind, model in models.items():
        save(model, units[kind].spec, work)
    vae = (vae_decoder_unit(adapter), vae_encoder_unit(adapter))
    for unit in vae:
        model = make_graph(unit)
        (work / unit.spec.path).parent.mkdir()
        share_weights([model], work / Path(unit.spec.path).parent)
        save(model, unit.spec, work)
    (source.parent / "config.json").unlink()
    write_bundle(adapter, name, units, vae, work, source)
    lacking = {
        "file": source.relative_to(work).as_posix(),
        "bytes": source.stat().st_size,
        "offset": len(head),
    }
    (work / "weights.json").write_text(json.dumps(lacking))
    source.unlink()


def save(model: ir.Model, spec: GraphSpec, work: Path) -> None:
    """Save a graph, and the one that stands in for it on the CPU."""
    save_graph(model, work / spec.path)
    if spec.cpu is not None:
        widened = ir.from_proto(ir.to_proto(model))
        cast_matmuls_to_float32(widened)
        save_graph(widened, work / spec.cpu)


def load(name: str, transformer: torch.nn.Module) -> Adapter:
    """Return the adapter of a pipeline without text encoders and with a small VAE."""
    transformer.eval().requires_grad_(False)
    store_weights_in(transformer, DTYPE)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae.eval().requires_grad_(False)
    tokenizer = clip_tokenizer()
    if name == "flux-dev":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        parts = (scheduler, vae, None, tokenizer, None, tokenizer, transformer)
        return FluxAdapter(FluxPipeline(*parts), DTYPE)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    absent = (None, tokenizer, None, tokenizer, None, None)
    return SD3Adapter(StableDiffusion3Pipeline(transformer, scheduler, vae, *absent), DTYPE)


def write_bundle(
    adapter: Adapter,
    name: str,
    units: dict[str, ExportUnit],
    vae: tuple[ExportUnit, ExportUnit],
    work: Path,
    source: Path,
) -> None:
    """Write the manifest. tests/gpu/weights.py puts in the digest of the weights."""
    hidden = source.rename(work.parent / f"{name}-{source.name}")
    length = 512 if name == "flux-dev" else 77
    parts = BundleParts(
        layout="forked",
        dtype="float16",
        source=name,
        graphs={kind: unit.spec for kind, unit in units.items()},
        encoders={},
        vae_decoder=vae[0].spec,
        vae_encoder=vae[1].spec,
        suppression=Suppression(len(adapter.blocks()) // 2, [0, 1], "settings", False, []),
        prompt=adapter.prompt(length),
        max_abs=[],
        settings=ModelSettings(max_sequence_length=length),
    )
    manifest = build_manifest(adapter, parts, work)
    hidden.rename(source)
    path = source.relative_to(work).as_posix()
    manifest["files"][path] = {"bytes": source.stat().st_size, "sha256": "0" * 64}
    write_manifest(manifest, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
