"""Weights in fp8 with scales beside them are what they stand for; other quantised ones are refused.

Scaled weights are compared with torch's own product of the fp8 tensor and its scale.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from intaglio_export.errors import ExportError
from intaglio_export.sources import open_source
from tests.export import original
from tests.export.sources import FAMILIES

State = dict[str, torch.Tensor]
FILES = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
FP8 = torch.float8_e4m3fn


def is_scaled(name: str, tensor: torch.Tensor) -> bool:
    """The weights that ComfyUI stores in fp8: matrices of blocks and layers."""
    inside = any(word in name for word in ("block", "layers."))
    return inside and tensor.ndim == 2 and name.endswith(".weight") and "relative" not in name


def scaled(state: State, suffix: str = ".scale_weight", rows: bool = False) -> tuple[State, State]:
    """What a program stores of `state`, and the float32 values that this stands for."""
    stored, meant = {}, {}
    for name, tensor in state.items():
        if is_scaled(name, tensor):
            largest = tensor.abs().amax(1, keepdim=True) if rows else tensor.abs().max()
            scale = largest.float() / 448
            stored[name] = (tensor / scale).to(FP8)
            stored[name.removesuffix(".weight") + suffix] = scale
            meant[name] = stored[name].float() * scale
        else:
            stored[name] = tensor.half()
            meant[name] = tensor.half().float()
    assert len(stored) > len(state)
    return stored, meant


def text(value: Any) -> torch.Tensor:
    """A JSON value as ComfyUI stores it beside a weight."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def assert_holds(network: torch.nn.Module, meant: State) -> None:
    for name, tensor in network.state_dict().items():
        expected = meant.get(name, meant.get(f"text_model.{name}", meant.get("shared.weight")))
        assert expected is not None
        torch.testing.assert_close(tensor.float(), expected, rtol=0, atol=0, msg=name)


@pytest.mark.reported("leejet/stable-diffusion.cpp#1898", "kijai/ComfyUI-WanVideoWrapper#504")
@pytest.mark.parametrize("family", ["flux"])
@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize(
    ("suffix", "rows"),
    [(".scale_weight", False), (".weight_scale", False), (".weight_scale", True)],
)
def test_scales_in_a_folder(folder: Path, part: str, suffix: str, rows: bool) -> None:
    """Weights in fp8 are multiplied by the scales beside them, per tensor or per row."""
    state = load_file(folder / FILES[part])
    stored, meant = scaled(state, suffix, rows)
    first = next(name for name in state if is_scaled(name, state[name]))
    stem = first.removesuffix(".weight")
    marks = {
        "scaled_fp8": torch.zeros(2, dtype=FP8),
        f"{stem}.input_scale": torch.tensor(0.5),
        f"{stem}.comfy_quant": text({"format": "float8_e4m3fn"}),
    }
    save_file(stored | marks, folder / FILES[part], {"format": "pt"})
    network = getattr(open_source(folder).adapter.pipeline, part)
    assert_holds(network, meant)
    assert all(torch.linalg.norm(meant[k] - v) < 0.04 * torch.linalg.norm(v)
               for k, v in state.items() if is_scaled(k, v))  # fmt: skip


@pytest.mark.parametrize("family", ["flux"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_are_applied_before_rounding(folder: Path, dtype: torch.dtype) -> None:
    """The product of weight and scale is made in float32 and rounded once."""
    stored, meant = scaled(load_file(folder / FILES["transformer"]))
    save_file(stored, folder / FILES["transformer"], {"format": "pt"})
    network = open_source(folder, dtype).adapter.transformer
    name = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(network.state_dict()[name], meant[name].to(dtype))


@pytest.mark.parametrize("family", ["flux"])
def test_tied_weights_that_are_stored_twice(folder: Path) -> None:
    """A weight with two names and a scale beside each is multiplied by one of them."""
    file = folder / FILES["text_encoder_2"]
    state = load_file(file)
    words = state.pop("shared.weight")
    scale = words.abs().max() / 448
    stored = (words / scale).to(FP8)
    for name in ("shared", "encoder.embed_tokens"):
        state |= {f"{name}.weight": stored.clone(), f"{name}.scale_weight": scale.clone()}
    save_file(state, file, {"format": "pt"})
    found = open_source(folder).adapter.pipeline.text_encoder_2.shared.weight
    torch.testing.assert_close(found, stored.float() * scale, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["flux"])
@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_one_file_beside_shards(folder: Path, part: str) -> None:
    """Of one file in fp8 and shards of plain weights beside it, only the file is read, so that its
    scales are not applied to the shards."""
    stored, meant = scaled(load_file(folder / FILES[part]))
    getattr(FAMILIES["flux"](), part).save_pretrained(folder / part, max_shard_size="20KB")
    assert len(list((folder / part).glob("*-of-*"))) > 1
    save_file(stored, folder / FILES[part], {"format": "pt"})
    assert_holds(getattr(open_source(folder).adapter.pipeline, part), meant)


@pytest.mark.reported("leejet/stable-diffusion.cpp#1898")
@pytest.mark.parametrize("scaled_part", ["text_encoders.t5xxl.", "model.diffusion_model."])
def test_scales_in_a_single_file(
    folders: dict[str, Path], tmp_path: Path, scaled_part: str
) -> None:
    """A file with everything in it may hold its T5 or its transformer in fp8 with scales."""
    whole = original.sd3_pipeline(FAMILIES["sd3"]())
    stored, meant = scaled({k: v for k, v in whole.items() if k.startswith(scaled_part)})
    rest = {k: v for k, v in whole.items() if not k.startswith(scaled_part)}
    mark = {f"{scaled_part}scaled_fp8": torch.zeros(2, dtype=FP8)}
    for name, state in (("scaled", rest | stored | mark), ("plain", rest | meant)):
        state = {key: tensor.contiguous() for key, tensor in state.items()}
        save_file(state, tmp_path / f"{name}.safetensors", {"format": "pt"})
    found, expected = (
        open_source(tmp_path / f"{name}.safetensors", config=str(folders["sd3"])).adapter.pipeline
        for name in ("scaled", "plain")
    )
    for part in ("transformer", "text_encoder_3"):
        tensors = getattr(expected, part).state_dict()
        for name, tensor in getattr(found, part).state_dict().items():
            torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=0, msg=name)


def int8(state: State) -> State:
    """As bitsandbytes stores it."""
    made = {}
    for name, tensor in state.items():
        if is_scaled(name, tensor):
            rows = tensor.abs().amax(1)
            made[name] = (tensor / rows[:, None] * 127).round().to(torch.int8)
            made[name.removesuffix("weight") + "SCB"] = rows
        else:
            made[name] = tensor.half()
    return made


def beside(**more: torch.Tensor) -> Callable[[State], State]:
    """Put tensors beside the first weight in fp8."""

    def change(state: State) -> State:
        stored, _ = scaled(state)
        first = next(name for name in stored if stored[name].dtype == FP8)
        stem = first.removesuffix("weight")
        return stored | {stem + name: tensor for name, tensor in more.items()}

    return change


def four_bits(state: State) -> State:
    """As bitsandbytes stores nf4."""
    name = next(name for name, tensor in state.items() if is_scaled(name, tensor))
    packed = torch.zeros(state[name].numel() // 2, 1, dtype=torch.uint8)
    return state | {name: packed, f"{name}.absmax": torch.ones(4)}


def half_with_a_scale(state: State) -> State:
    stored, _ = scaled(state)
    return {k: v.half() if v.dtype == FP8 else v for k, v in stored.items()}


REFUSED: dict[str, tuple[Callable[[State], State], str]] = {
    "bitsandbytes int8": (int8, "is quantised (I8)"),
    "bitsandbytes nf4": (four_bits, "is quantised (U8)"),
    "blocks": (beside(scale_weight=torch.ones(2, 2)), "with scales of blocks"),
    "scales of blocks": (beside(weight_scale_inv=torch.ones(1)), "weight_scale_inv"),
    "smoothed": (beside(pre_quant_scale=torch.ones(1)), "pre_quant_scale"),
    "nvfp4": (beside(comfy_quant=text({"format": "nvfp4"})), "nvfp4"),
    "rotated": (beside(comfy_quant=text({"format": "float8_e4m3fn", "convrot": True})), "convrot"),
    "half": (half_with_a_scale, "is F16, and has a scale"),
    "a scale of nothing": (
        lambda state: state | {"blocks.9.q.scale_weight": torch.ones(1)},
        "blocks.9.q.scale_weight",
    ),
    "something else": (lambda state: state | {"blocks.0.gates": torch.ones(3)}, "blocks.0.gates"),
}


@pytest.mark.reported("leejet/stable-diffusion.cpp#1898", "kijai/ComfyUI-WanVideoWrapper#498")
@pytest.mark.parametrize("family", ["flux"])
@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_in_a_folder(folder: Path, part: str, case: str) -> None:
    """A tensor of a weight file that is neither used nor known to be needless is named."""
    change, says = REFUSED[case]
    save_file(change(load_file(folder / FILES[part])), folder / FILES[part], {"format": "pt"})
    with pytest.raises(ExportError, match="The weights ") as caught:
        open_source(folder)
    assert says in caught.value.message
    assert str(folder / FILES[part]) in caught.value.message


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "text_encoders.t5xxl.transformer."])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_in_a_single_file(
    folders: dict[str, Path], tmp_path: Path, prefix: str, case: str
) -> None:
    """The same holds for the parts of a file that holds a whole pipeline."""
    change, says = REFUSED[case]
    whole = original.sd3_pipeline(FAMILIES["sd3"]())
    part = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    changed = {prefix + name: tensor for name, tensor in change(part).items()}
    state = {k: v for k, v in whole.items() if not k.startswith(prefix)} | changed
    file = tmp_path / "all.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, file, {"format": "pt"})
    with pytest.raises(ExportError) as caught:
        open_source(file, config=str(folders["sd3"]))
    assert says in caught.value.message
    assert str(file) in caught.value.message


@pytest.mark.parametrize("family", ["flux"])
def test_needless_tensors(folder: Path) -> None:
    """Files of whole T5 and CLIP models are read, and so are marks that change no weight."""
    t5, clip = folder / FILES["text_encoder_2"], folder / FILES["text_encoder"]
    plain = open_source(folder).adapter.pipeline
    decoder = {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}
    dummy = {"encoder.block.0.layer.0.SelfAttention.q.scale_weight": torch.ones(1)}
    save_file(load_file(t5) | decoder | dummy, t5, {"format": "pt"})
    more = {"logit_scale": torch.tensor(4.6), "text_projection.weight": torch.eye(24)}
    more |= {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(load_file(clip) | more, clip, {"format": "pt"})
    found = open_source(folder).adapter.pipeline
    for part in ("text_encoder", "text_encoder_2"):
        expected = getattr(plain, part).state_dict()
        for name, tensor in getattr(found, part).state_dict().items():
            assert torch.equal(tensor, expected[name])
