"""Text encoders with integer weights: against transformers' own, and against NumPy's product of the
integers and scales that the graph holds.
"""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import intaglio
from intaglio import _core
from intaglio_export.adapters.layouts import EncoderLayout
from intaglio_export.bundle.writing import Stage, write_stages
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.exporter import export_bundle
from intaglio_export.networks.encoders import text_encoder_unit
from intaglio_export.options import ExportRequest
from intaglio_export.passes.products import SMALLEST
from intaglio_export.passes.quantize_weights import BLOCK
from intaglio_export.precision import store_weights_in
from tests import bundles
from tests.export.test_language_models import (
    LENGTH,
    VOCABULARY,
    made,
    mistral,
    prompts,
    qwen2_5_vl,
    qwen3_with_head,
)
from tests.integration.conftest import ENTRY_POINT, build_of_onnxruntime


def t5() -> Any:
    model = T5EncoderModel(
        T5Config(
            vocab_size=VOCABULARY, d_model=72, d_kv=16, d_ff=96, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    with torch.no_grad():  # T5 does not scale its scores, and `made` makes weights 4 times as large
        for layer in model.encoder.block:
            layer.layer[0].SelfAttention.q.weight /= 16
    return model


def clip() -> Any:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=64,
            eos_token_id=VOCABULARY - 1,
        )
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "t5": (t5, {"outputs": ("hidden",), "masked": True}),
    "clip": (clip, {"outputs": ("hidden", "pooled")}),
    "qwen3": (qwen3_with_head, {"outputs": ("hidden",), "masked": True, "taps": (1, 2, 4)}),
    "mistral": (mistral, {"outputs": ("hidden",), "masked": True, "taps": (-2,)}),
    "qwen2.5-vl": (qwen2_5_vl, {"outputs": ("hidden",), "masked": True, "taps": (-1,)}),
}


def exported(model: Any, scheme: str, folder: Path, layout: EncoderLayout, dtype: Any) -> Path:
    model = copy.deepcopy(model)
    store_weights_in(model, dtype)
    unit = text_encoder_unit(model, "text_encoder", layout, dtype, scheme)
    write_stages([Stage(model, [unit])], folder, lambda what, done: None)
    return folder / unit.spec.path


def run(file: Path, layout: EncoderLayout) -> dict[str, np.ndarray]:
    ids, mask = prompts(gap=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feeds = {"token_ids": ids.numpy()}
    if layout.masked:
        feeds["text_mask"] = mask.float().numpy()
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, feeds), strict=True))


@torch.no_grad()
def transformers_own(model: Any, layout: EncoderLayout) -> dict[str, np.ndarray]:
    ids, mask = prompts(gap=False)
    out = model(
        ids, attention_mask=mask.long() if layout.masked else None, output_hidden_states=True
    )
    taps = layout.taps or (-2 if "pooled" in layout.outputs else -1,)
    found = {"hidden": torch.cat([out.hidden_states[tap] for tap in taps], dim=-1).numpy()}
    if "pooled" in layout.outputs:
        found["pooled"] = out.text_embeds.numpy()
    return found


def error(got: dict[str, np.ndarray], want: dict[str, np.ndarray], masked: bool) -> float:
    """The largest of the outputs, where nobody reads padding."""
    _, mask = prompts(gap=False)
    assert got.keys() == want.keys()
    read = {name: mask.numpy() if masked and name == "hidden" else ... for name in want}
    return max(
        float(
            np.linalg.norm((got[name] - want[name])[read[name]])
            / np.linalg.norm(want[name][read[name]])
        )
        for name in want
    )


def dequantized(file: Path, bits: int) -> list[np.ndarray]:
    """What the graph's integers stand for, as [outputs, inputs]; tables of embeddings come last."""
    graph = onnx.load(file).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        table = node.op_type == "GatherBlockQuantized"
        integers, scale = (held[node.input[i]] for i in ((0, 2) if table else (1, 2)))
        packed = integers.reshape(len(integers), -1)
        if bits == 4 and not table:
            packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
        zero = 8 if bits == 4 and not table else 128
        scales = scale.reshape(len(packed), -1).repeat(BLOCK, axis=1)[:, : packed.shape[1]]
        values = (packed.astype(np.float32) - zero) * scales
        given = {attribute.name: attribute.i for attribute in node.attribute}
        found.append(values if table else values[:, : given["K"]])
    return found


def with_stored_weights(model: Any, stored: list[np.ndarray]) -> tuple[Any, int]:
    """A copy of `model` in which each weight is replaced by what is stored for it.

    Also how many have been replaced, which are all that are large enough.
    """
    model = copy.deepcopy(model)
    found: dict[int, nn.Parameter] = {}  # T5 has its table in two modules
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.numel() < SMALLEST:
            continue
        key = id(module.weight)
        weight = module.weight.detach().numpy()
        near = [s for s in stored if s.shape == weight.shape]
        errors = [np.linalg.norm(s - weight) / np.linalg.norm(weight) for s in near]
        if key not in found and errors and min(errors) < 0.2:
            found[key] = nn.Parameter(torch.from_numpy(near[int(np.argmin(errors))]))
        module.weight = found.get(key, module.weight)
    return model, len(found)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_those_of_the_stored_weights(name: str, scheme: str, tmp_path: Path) -> None:
    make, options = MODELS[name]
    layout = EncoderLayout("tokenizer", LENGTH, **options)
    model = made(make)
    file = exported(model, scheme, tmp_path, layout, torch.float32)
    got = run(file, layout)
    bits = 8 if scheme == "int8" else 4
    stored = dequantized(file, bits)
    stand_in, replaced = with_stored_weights(model, stored)
    assert replaced == len(stored) > 8
    assert error(got, transformers_own(stand_in, layout), layout.masked) < 1e-5
    exact = error(got, transformers_own(model, layout), layout.masked)
    assert 1e-4 < exact < {"int8": 0.03, "int4": 0.4}[scheme]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bit_lose_no_more(dtype: torch.dtype, tmp_path: Path) -> None:
    """No product is rounded to them, so the error is that of the integers."""
    make, options = MODELS["qwen3"]
    layout = EncoderLayout("tokenizer", LENGTH, **options)
    model = made(make)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    files = [
        exported(model, "int8", tmp_path / str(kept), layout, kept)
        for kept in (torch.float32, dtype)
    ]
    np.testing.assert_allclose(
        run(files[1], layout)["hidden"], run(files[0], layout)["hidden"], rtol=1e-4, atol=1e-5
    )
    assert not [t for t in onnx.load(files[1]).graph.initializer if t.data_type in (10, 16)]


@pytest.fixture(scope="module")
def bundle() -> Path:
    """Z-Image, whose language model is large enough to be quantised."""
    return bundles.bundle("z-image", quantize_encoders="int8")


def test_the_manifest_says_how_far_embeddings_are_off(bundle: Path) -> None:
    """The largest error of a prompt, here of the runtime's embeddings against float32's."""
    manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
    said = {name: e["quantized"] for name, e in manifest["prompt"]["encoders"].items()}
    assert said
    assert all(entry["scheme"] == "int8" and 0 < entry["error"] < 0.05 for entry in said.values())
    assert all(manifest["errors"][f"{n}/model.onnx"] == pytest.approx(said[n]["error"], rel=1e-2)
               for n in said)  # fmt: skip
    shown = subprocess.run(
        [ENTRY_POINT, "inspect", bundle, "--json"], check=True, capture_output=True, text=True
    )
    assert json.loads(shown.stdout)["quantized_encoders"] == said


def test_the_runtime_draws_with_them(bundle: Path) -> None:
    prompt = "a dark ankle boot"
    plain = intaglio.Pipeline.open(bundles.bundle("z-image"), device="cpu", threads=1)
    integers = intaglio.Pipeline.open(bundle, device="cpu", threads=1)
    got, want = (np.asarray(p.embed(prompt).prompt_embeds) for p in (integers, plain))
    assert 1e-5 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.05
    got, want = (
        np.asarray(p.generate(prompt, seeds=1, steps=2).latents) for p in (integers, plain)
    )
    assert 1e-6 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.1


def test_beside_another_device_they_run_on_the_cpu(bundle: Path, tmp_path: Path) -> None:
    """The plan says so, and OpenVINO gets none of their nodes: the result is the CPU's, bit for
    bit."""
    opened = _core.Bundle.open(bundle)
    phases = _core.plan_memory(opened, device="cuda").phases
    assert {phase.part for phase in phases if phase.on_cpu} == {"text_encoder"}
    assert not any(phase.on_cpu for phase in _core.plan_memory(opened).phases)
    made = {}
    for device in ("cpu", "openvino"):
        file = tmp_path / f"{device}.safetensors"
        library = build_of_onnxruntime("openvino")
        subprocess.run(
            [ENTRY_POINT, "embed", bundle, "--prompt", "a boot", "-o", file, "--device", device,
             "--onnxruntime", library],
            check=True, capture_output=True,
        )  # fmt: skip
        made[device] = load_file(file)
    assert made["cpu"].keys() == made["openvino"].keys()
    for name, tensor in made["cpu"].items():
        np.testing.assert_array_equal(made["openvino"][name], tensor)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"quantize_encoders": "int3"}, "--quantize-encoders int3: expected int8 or int4"),
        (
            {"quantize_encoders": "int8", "text_encoders": "none"},
            "needs text encoders, and --text-encoders none leaves them out",
        ),
    ],
)
def test_bad_input(tmp_path: Path, given: dict[str, str], says: str) -> None:
    request = ExportRequest(bundles.source(), tmp_path / "out", **given)
    with pytest.raises(ExportError, match=says) as caught:
        export_bundle(request)
    assert caught.value.exit_code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


def test_a_model_of_classes_has_none(tmp_path: Path) -> None:
    request = ExportRequest(bundles.source("dit"), tmp_path / "out", quantize_encoders="int4")
    with pytest.raises(ExportError, match="has no text encoders that a bundle holds") as caught:
        export_bundle(request)
    assert caught.value.exit_code == ExitCode.USAGE
