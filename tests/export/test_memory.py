"""The peak memory of an export, anonymous and mapped, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.exports
# Of the bundle's weights. A second copy, or a wider one, would take 2 and more.
SHARE = 1.3
# Beside weights: activations, graphs, and the one tensor that is being converted or transposed.
REST = 140e6
# A first export, of nothing much, leaves torch, its exporter and their caches in memory.
PROGRAM = """
import pathlib, sys, torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from tests.families import parts
from benchmarks.scale.folders import write_pipeline

def size(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def export(name, stored, dtype, width):
    source, bundle = work / name, work / (name + ".bundle")
    tokenizer = parts.make_clip_tokenizer()
    clip = parts.make_clip(tokenizer, 16, "gelu")
    networks = {"vae": parts.make_vae(1.0, 0.0), "text_encoder": clip, "text_encoder_2": clip}
    with torch.device("meta"):
        networks["transformer"] = SD3Transformer2DModel(
            sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=64,
            num_attention_heads=width // 64, caption_projection_dim=width, joint_attention_dim=64,
            pooled_projection_dim=32, pos_embed_max_size=16)
    others = {"scheduler": FlowMatchEulerDiscreteScheduler(), "tokenizer": tokenizer,
              "tokenizer_2": tokenizer, "text_encoder_3": None, "tokenizer_3": None}
    write_pipeline(source, "StableDiffusion3Pipeline", networks, others, getattr(torch, stored))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = size("VmRSS")
    request = ExportRequest(source, bundle, dtype=dtype, channels="top:1", text_encoders="none")
    export_bundle(request)
    return size("VmHWM") - before, sum(f.stat().st_size for f in bundle.rglob("*.data"))

work = pathlib.Path(sys.argv[1])
export("small", "float32", "float32", 64)
for stored, dtype, width in CASES:
    print(*export(stored + dtype, stored, dtype, width))
"""
# As stored, as exported, and channels.
CASES = (("float32", "float32", 1024), ("float16", "float16", 1536), ("float32", "float16", 1536))

# The transformer is in memory, and has more numbers in its activations than in its weights.
FORWARDS = """
import pathlib, torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from intaglio_export.adapters.z_image import ZImageAdapter
from intaglio_export.bundle.verify import reference
from intaglio_export.networks.transformer_graphs import transformer_units
from intaglio_export.precision import store_weights_in
from tests.families import parts

def size(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

transformer = ZImageTransformer2DModel(
    in_channels=4, dim=512, n_layers=12, n_refiner_layers=1, n_heads=4, n_kv_heads=4,
    cap_feat_dim=40, axes_dims=[32, 48, 48], axes_lens=[160, 48, 64]).eval()
store_weights_in(transformer, torch.bfloat16)
pipeline = ZImagePipeline(None, parts.make_vae(1.0, 0.0), None, None, transformer)
graphs = transformer_units(ZImageAdapter(pipeline, torch.bfloat16), "forked", 5)
for name in ("conditioning", "forked"):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = size("VmRSS")
    reference(graphs[name])
    print(size("VmHWM") - before, sum(p.nbytes for p in transformer.parameters()))
"""


def test_an_export_holds_its_weights_once(tmp_path: Path) -> None:
    lines = _run(f"CASES = {CASES}\n{PROGRAM}", tmp_path)[-len(CASES) :]
    for (stored, dtype, _), line in zip(CASES, lines, strict=True):
        peak, weights = map(int, line.split())
        assert weights > REST, "too little to tell"
        assert peak < SHARE * weights + REST, f"{dtype} of {stored}: {peak} for {weights} bytes"


def test_a_forward_lets_go_of_its_activations() -> None:
    for line in _run(FORWARDS)[-2:]:
        peak, weights = map(int, line.split())
        assert peak < weights, f"{peak} for {weights} bytes of weights"


def _run(program: str, *arguments: object) -> list[str]:
    """Run `program` in a process of its own, and return the lines that it prints."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks can be reset on Linux only")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=root, env={"PYTHONPATH": f"{root}:{root / 'export'}"}, capture_output=True, text=True,
        timeout=480, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
