"""ComfyUI's int8, ConvRot, nvfp4 and mxfp8: each weight as comfy-kitchen computes it from the file.

comfy-kitchen quantises the weights and unpacks them to compare.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor
from safetensors.torch import load_file, save_file

from intaglio_export.errors import ExportError
from intaglio_export.sources import open_source
from tests.export import original
from tests.export.sources import FAMILIES
from tests.export.test_scaled_weights import FILES, State, is_scaled, text

PREFIX = "model.diffusion_model."
# How comfy-kitchen quantises, and what ComfyUI says of it.
FORMATS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fp8": ("TensorCoreFP8Layout", {}, {"format": "float8_e4m3fn"}),
    "int8": ("TensorWiseINT8Layout", {}, {"format": "int8_tensorwise"}),
    "int8 by row": ("TensorWiseINT8Layout", {"per_channel": True}, {"format": "int8_tensorwise"}),
    "ConvRot": (
        "TensorWiseINT8Layout",
        {"per_channel": True, "convrot": True, "convrot_groupsize": 64},
        {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64},
    ),
    "ConvRot of 16": (
        "TensorWiseINT8Layout",
        {"per_channel": True, "convrot": True, "convrot_groupsize": 16},
        {"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": 16}},
    ),
    "nvfp4": ("TensorCoreNVFP4Layout", {}, {"format": "nvfp4"}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}, {"format": "mxfp8"}),
}


def packed(state: State, layout: str, **options: Any) -> tuple[State, State, list[str]]:
    """What ComfyUI stores of `state`, the float32 values that this means, and the layers."""
    stored, meant, layers = {}, {}, []
    for name, tensor in state.items():
        block = 32 if "MXFP8" in layout else 16
        if is_scaled(name, tensor) and all(size % block == 0 for size in tensor.shape):
            weight = QuantizedTensor.from_float(
                tensor.float(), layout, scale="recalculate", **options
            )
            stored |= {k: v.clone() for k, v in weight.state_dict(name).items()}
            meant[name] = weight.dequantize()
            layers.append(name.removesuffix(".weight"))
        else:
            stored[name], meant[name] = tensor.half(), tensor.half().float()
    assert len(layers) > 3
    return stored, meant, layers


def write(file: Path, state: State, **metadata: str) -> Path:
    save_file({k: v.contiguous() for k, v in state.items()}, file, {"format": "pt"} | metadata)
    return file


def sd3() -> State:
    return original.sd3_transformer(FAMILIES["sd3"]().transformer.state_dict())


def assert_close(found: torch.nn.Module, base: Path, meant: State, tmp_path: Path) -> None:
    """Compare with the same model in float32; turned columns are summed in some order."""
    plain = write(tmp_path / "plain.safetensors", meant)
    expected = open_source(plain, config=str(base)).adapter.transformer.state_dict()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("place", ["beside", "metadata", "metadata without the prefix"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_transformer(folders: dict[str, Path], tmp_path: Path, kind: str, place: str) -> None:
    layout, options, description = FORMATS[kind]
    stored, meant, layers = packed(sd3(), layout, **options)
    metadata = {}
    if place == "beside":
        stored |= {f"{layer}.comfy_quant": text(description) for layer in layers}
    else:
        prefix = PREFIX if place == "metadata" else ""
        said = {f"{prefix}{layer}": description for layer in layers}
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": said})
    tensors = {PREFIX + name: tensor for name, tensor in stored.items()}
    file = write(tmp_path / "tuned.safetensors", tensors, **metadata)
    found = open_source(file, config=str(folders["sd3"])).adapter.transformer
    assert_close(found, folders["sd3"], meant, tmp_path)


@pytest.mark.parametrize("kind", ["ConvRot of 16", "nvfp4"])
@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_a_part_of_a_folder(folders: dict[str, Path], tmp_path: Path, part: str, kind: str) -> None:
    """People put ComfyUI's file of a part in place of diffusers'."""
    shutil.copytree(folders["flux"], base := tmp_path / "base")
    layout, options, description = FORMATS[kind]
    stored, meant, layers = packed(load_file(base / FILES[part]), layout, **options)
    stored |= {f"{layer}.comfy_quant": text(description) for layer in layers}
    write(base / FILES[part], stored)
    network = getattr(open_source(base).adapter.pipeline, part)
    for name, tensor in network.state_dict().items():
        expected = meant.get(name, meant.get("shared.weight"))
        torch.testing.assert_close(tensor.float(), expected, rtol=1e-5, atol=1e-7, msg=name)


def test_numbers_are_rounded_once(folders: dict[str, Path], tmp_path: Path) -> None:
    layout, _, description = FORMATS["nvfp4"]
    stored, meant, layers = packed(load_file(folders["flux"] / FILES["transformer"]), layout)
    stored |= {f"{layer}.comfy_quant": text(description) for layer in layers}
    file = write(tmp_path / "tuned.safetensors", stored)
    found = open_source(file, torch.bfloat16, config=str(folders["flux"])).adapter.transformer
    name = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(found.state_dict()[name], meant[name].bfloat16())


LAYER = "joint_blocks.0.x_block.mlp.fc1"
Change = Callable[[State], State]


def without(last: str) -> Change:
    return lambda state: {k: v for k, v in state.items() if k != f"{LAYER}.{last}"}


def changed(last: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda state: state | {f"{LAYER}.{last}": change(state[f"{LAYER}.{last}"])}


# A change of a file in nvfp4, and what is said of it.
REFUSED: dict[str, tuple[Change, str]] = {
    "no scale": (without("weight_scale"), f"lacks its scale, {LAYER}.weight_scale;"),
    "no total": (without("weight_scale_2"), f"lacks its scale, {LAYER}.weight_scale_2;"),
    "no description": (without("comfy_quant"), "is quantised (U8), and nothing in the file says"),
    "scales in rows": (
        changed("weight_scale", lambda scale: scale[:, :1]),
        "has F8_E4M3 scales of another layout (256x1)",
    ),
    "two totals": (
        changed("weight_scale_2", lambda scale: scale.repeat(2)),
        "has more than one scale of the whole weight",
    ),
    "infinite": (
        changed("weight_scale_2", lambda scale: scale * torch.inf),
        f"the scale of {LAYER}.weight is not finite",
    ),
    "another type": (
        changed("weight", lambda weight: weight.view(torch.int8)),
        "is I8, and is described as nvfp4",
    ),
    **{
        name: (changed("comfy_quant", lambda _, said=said: text(said)), says)
        for name, said, says in (
            ("mxfp8", {"format": "mxfp8"}, "is U8, and is described as mxfp8"),
            ("W4A8", {"format": "asym_w4a8_int8"}, "is quantised (asym_w4a8_int8)"),
            ("turned", {"format": "nvfp4", "convrot": True}, '"convrot": true'),
            ("no JSON", "nvfp4", 'is quantised ("nvfp4")'),
        )
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    change, says = REFUSED[case]
    layout, _, description = FORMATS["nvfp4"]
    stored, _, layers = packed(sd3(), layout)
    stored |= {f"{layer}.comfy_quant": text(description) for layer in layers}
    file = write(tmp_path / "tuned.safetensors", change(stored))
    assert says in refusal(file, folders["sd3"])


def test_a_rotation_that_cannot_be(folders: dict[str, Path], tmp_path: Path) -> None:
    layout, options, description = FORMATS["ConvRot"]
    stored, _, layers = packed(sd3(), layout, **options)
    for size in (48, 256, "all"):
        said = description | {"convrot_groupsize": size}
        marks = {f"{layer}.comfy_quant": text(said) for layer in layers}
        file = write(tmp_path / f"{size}.safetensors", stored | marks)
        assert f"is rotated by {size} columns, which" in refusal(file, folders["sd3"])


def test_scaled_fp8_without_a_scale(folders: dict[str, Path], tmp_path: Path) -> None:
    """In a file that says all its matrices in fp8 are scaled, one is not."""
    state = {k: v.half() for k, v in sd3().items()}
    state |= {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    state[f"{LAYER}.weight"] = state[f"{LAYER}.weight"].to(torch.float8_e4m3fn)
    file = write(tmp_path / "tuned.safetensors", state)
    says = f"{LAYER}.weight is quantised (scaled fp8) and lacks its scale"
    assert says in refusal(file, folders["sd3"])
    state[f"{LAYER}.scale_weight"] = torch.tensor(0.5)
    file = write(tmp_path / "whole.safetensors", state)
    found = open_source(file, config=str(folders["sd3"])).adapter.transformer.state_dict()
    expected = state[f"{LAYER}.weight"].float() / 2
    assert torch.equal(found["transformer_blocks.0.ff.net.0.proj.weight"], expected)


def refusal(file: Path, config: Path) -> str:
    with pytest.raises(ExportError) as caught:
        open_source(file, config=str(config))
    assert caught.value.exit_code == 3
    assert str(file) in caught.value.message
    return caught.value.message
