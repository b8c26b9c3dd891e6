"""Parts that do not belong together, or are missing, or are quantised: what is said, and when."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, T5EncoderModel

from intaglio_export.adapters.schedulers import check_scheduler
from intaglio_export.calibration.calibrate import calibrate
from intaglio_export.errors import ExportError
from intaglio_export.sources import open_source
from intaglio_export.sources.pipeline_folder import load_pipeline, open_folder
from tests.export.sources import assert_same, edit
from tests.families.parts import (
    MAX_LENGTH,
    make_clip,
    make_clip_tokenizer,
    make_t5,
    make_t5_tokenizer,
)

Change = Callable[[Path], object]


def replaced(part: str, network: Any) -> Change:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / part)
        network().save_pretrained(folder / part)

    return change


def t5() -> T5EncoderModel:
    return make_t5(make_t5_tokenizer(), 32)


def clip() -> CLIPTextModel:
    return make_clip(make_clip_tokenizer(), 16, "quick_gelu", projected=False)


def vae() -> AutoencoderKL:
    """Of eight latent channels, where the others have four."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=8,
        norm_num_groups=4,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def first_clip_twice(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_2")
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_2")


def longer_prompts(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=77)


LATENTS = ("the vae gives 8 latent channels", "takes 4")
TOKENS = ("77 tokens of a prompt (model_max_length)", "text_encoder has 16 positions")
T5_WIDTH = ("gives 32 channels", "the transformer takes 48")
MIXED: list[tuple[str, Change, tuple[str, str]]] = [
    ("flux", replaced("text_encoder_2", t5), T5_WIDTH),
    ("flux", replaced("text_encoder", clip), ("text_encoder gives 16 pooled", "takes 24")),
    ("flux", longer_prompts, TOKENS),
    ("flux", replaced("vae", vae), LATENTS),
    ("sd3", replaced("vae", vae), LATENTS),
    ("sd3", first_clip_twice, ("text_encoder and text_encoder_2 give 32 pooled", "takes 40")),
    ("sd3", replaced("text_encoder_3", t5), T5_WIDTH),
    ("sd3", longer_prompts, TOKENS),
    ("dit", replaced("vae", vae), LATENTS),
    ("pixart-sigma", replaced("vae", vae), LATENTS),
    ("pixart-sigma", replaced("text_encoder", t5), T5_WIDTH),
]


@pytest.mark.reported("city96/ComfyUI_ExtraModels#6", "city96/ComfyUI-GGUF#77")
@pytest.mark.parametrize(("family", "change", "says"), MIXED)
def test_parts_of_different_models(folder: Path, change: Change, says: tuple[str, str]) -> None:
    """Parts of different models are refused with the two numbers that differ."""
    change(folder)
    with pytest.raises(ExportError) as caught:
        open_source(folder)
    assert all(number in caught.value.message for number in (*says, str(folder)))
    assert caught.value.exit_code == 3


@pytest.mark.reported("invoke-ai/InvokeAI#6455", "CompVis/stable-diffusion#860")
@pytest.mark.parametrize("family", ["sd3", "flux", "pixart-sigma"])
@pytest.mark.parametrize("limit", [None, 1000000000000000019884624838656])
def test_a_tokenizer_without_a_limit(folder: Path, limit: int | None) -> None:
    """A tokenizer that names no length makes as many tokens as its encoder has positions."""
    for path in folder.glob("tokenizer*/tokenizer_config.json"):
        edit(path, model_max_length=limit)
    adapter = open_source(folder).adapter
    prompt = adapter.prompt(MAX_LENGTH)
    assert prompt is not None
    for name, layout in prompt.encoders.items():
        positions = getattr(adapter.pipeline, name).config.to_dict().get("max_position_embeddings")
        assert layout.max_length == (positions or MAX_LENGTH)
    assert torch.isfinite(adapter.encode_prompts(["a boot " * 40], MAX_LENGTH)["text"]).all()


def named_null(folder: Path, *parts: str) -> None:
    edit(folder / "model_index.json", **{name: [None, None] for name in parts})


def deleted(folder: Path, *parts: str) -> None:
    for name in parts:
        shutil.rmtree(folder / name)


@pytest.mark.reported("bghira/SimpleTuner#813", "Nerogar/OneTrainer#639")
@pytest.mark.parametrize("family", ["sd3", "flux", "pixart-sigma", "qwen-image"])
@pytest.mark.parametrize("absent", [named_null, deleted])
@pytest.mark.parametrize("kept", ["", "tokenizer"])
def test_a_folder_without_text_encoders(
    folder: Path, absent: Callable[..., None], kept: str
) -> None:
    """A pipeline that was saved without text encoders is read with --text-encoders none."""
    expected = open_source(folder).adapter
    parts = [p.name for p in folder.iterdir() if p.name.startswith(("text_enc", "tokenizer"))]
    absent(folder, *(name for name in parts if name != kept))
    with pytest.raises(ExportError, match="text_encoder"):
        open_source(folder)
    adapter = open_source(folder, text_encoders="none").adapter
    assert_same(adapter.transformer, expected.transformer)
    assert not adapter.has_encoders
    layout, whole = adapter.prompt(MAX_LENGTH), expected.prompt(MAX_LENGTH)
    assert layout is not None
    assert whole is not None
    assert layout.text_width == whole.text_width
    assert (
        calibrate(adapter, MAX_LENGTH).massive(2)[:1]
        == calibrate(expected, MAX_LENGTH).massive(2)[:1]
    )


BNB = {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": False}
METHODS: list[tuple[dict[str, Any], str]] = [
    (BNB | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes nf4"),
    (BNB | {"load_in_8bit": True}, "bitsandbytes int8"),
    ({"quant_method": "quanto", "weights_dtype": "int8"}, "quanto int8"),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8"}}}, "torchao"),
    ({"quant_method": "modelopt", "quant_type": "FP8"}, "modelopt FP8"),
    ({"quant_method": "gguf", "compute_dtype": "bfloat16"}, "gguf"),
    ({"quant_method": "gptq", "bits": 4}, "gptq 4"),
]  # fmt: skip


@pytest.mark.reported("huggingface/optimum#1914")
@pytest.mark.parametrize("family", ["flux"])
@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
@pytest.mark.parametrize(("method", "name"), METHODS)
def test_a_quantised_part(folder: Path, part: str, method: dict[str, Any], name: str) -> None:
    """A part whose config.json names a quantisation is refused with its name and the way out."""
    edit(folder / part / "config.json", quantization_config=method)
    for weights in (folder / "vae").glob("*.safetensors"):  # nothing is loaded before the refusal
        weights.unlink()
    with pytest.raises(ExportError) as caught:
        open_source(folder)
    message = caught.value.message
    assert message.startswith(f"The part {part} of {folder} is quantised ({name}), ")
    assert "give the model that it was made from" in message
    assert ("--quantize" in message) == (part == "transformer")


@pytest.mark.parametrize("family", ["flux"])
def test_a_tensor_without_a_value(folder: Path) -> None:
    """A network with a tensor that no file filled is refused with the tensor's name."""
    found = open_folder(folder)
    transformer = open_source(folder).adapter.transformer
    transformer.proj_out.bias = torch.nn.Parameter(transformer.proj_out.bias.to("meta"))
    with pytest.raises(
        ExportError, match=r"part transformer .* without a value for proj_out\.bias"
    ):
        load_pipeline(found, torch.float32, {"transformer": transformer})


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("transformer/config.json", {"axes_dims_rope": [4, 6, 8]}, "The transformer cannot be run"),
    ("transformer/config.json", {"axes_dims_rope": "x"}, "The transformer cannot be run"),
    ("text_encoder/config.json", {"layer_norm_eps": "x"}, "The part"),
    ("text_encoder_2/config.json", {"layer_norm_epsilon": "x"}, "The part"),
    ("scheduler/scheduler_config.json", {"shift_terminal": "x"}, "The scheduler cannot be run"),
    ("scheduler/scheduler_config.json", {"base_shift": "x"}, "base_shift 'x', which is not a"),
    ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}, "length 'x', which is not a"),
]


@pytest.mark.parametrize("family", ["flux"])
@pytest.mark.parametrize(("file", "change", "says"), FIELDS)
def test_a_wrong_field(folder: Path, file: str, change: dict[str, Any], says: str) -> None:
    """What the model's own code refuses to load or to compute is said in one sentence."""
    edit(folder / file, **change)

    def run() -> None:
        adapter = open_source(folder).adapter
        check_scheduler(adapter.pipeline.scheduler, adapter.prediction_type)
        calibrate(adapter, MAX_LENGTH)

    with pytest.raises(ExportError) as caught:
        run()
    assert says in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("family", ["sd3"])
def test_positions_that_are_computed_for_each_size(folder: Path) -> None:
    """SD3 without a table of positions is refused, because a graph would keep those of one size."""
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pos_embed_max_size": None}))
    with pytest.raises(ExportError, match="has no pos_embed_max_size"):
        open_source(folder)


@pytest.mark.parametrize("family", ["flux"])
def test_a_fault_of_our_own_code_keeps_its_traceback(folder: Path) -> None:
    """An error that the model's code does not raise is not taken for one of the model."""

    def progress(share: float) -> None:
        torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        calibrate(open_source(folder).adapter, MAX_LENGTH, progress)
