"""LoRAs in formats that diffusers does not read, or reads in part: nothing is lost in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from intaglio_export.adapters import Adapter
from intaglio_export.options import Lora
from intaglio_export.sources import open_source
from tests.export.sources import assert_same, prediction
from tests.export.test_lora import ATTENTION, active, refusal, write_lora

Tensors = dict[str, torch.Tensor]
TO_Q = "transformer_blocks.0.attn.to_q"
T5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
COMFY_T5 = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def kohya(name: str, rows: int = 64, columns: int = 64, alpha: float = 2.0) -> Tensors:
    """A layer of rank 4 as sd-scripts names its tensors."""
    return {
        f"{name}.lora_down.weight": some(4, columns),
        f"{name}.lora_up.weight": some(rows, 4),
        f"{name}.alpha": torch.tensor(alpha),
    }


def peft(name: str, rows: int = 64, columns: int = 64) -> Tensors:
    """A layer of rank 4 as peft and diffusers name its tensors."""
    return {
        f"{name}.lora_A.weight": some(4, columns),
        f"{name}.lora_B.weight": some(rows, 4),
    }


UNET = "lora_unet_double_blocks_0_img_attn_proj"
CLIP = "lora_te1_text_model_encoder_layers_0_self_attn_"
COMFY = "diffusion_model.double_blocks.0.img_attn"
SINGLE, COMFY_SINGLE = "lora_unet_single_blocks_1", "diffusion_model.single_blocks.1"


def write(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.reported(
    "huggingface/diffusers#10954", "huggingface/diffusers#10985", "huggingface/diffusers#10745",
    "nunchux-ai/ComfyUI-nunchaku#94",
)  # fmt: skip
@pytest.mark.parametrize(
    ("known", "more", "says"),
    [
        (UNET, kohya(T5, 16, 48), f"for the text encoder T5 ({T5}."),
        (f"{COMFY}.proj", kohya(COMFY_T5, 16, 48), "for the text encoder T5"),
        (f"{COMFY}.proj", {f"{COMFY}.proj.diff_b": some(64)}, f"changes biases ({COMFY}.proj"),
        (f"{COMFY}.proj", {f"{COMFY}.norm.query_norm.diff": some(16)}, "changes normalisation"),
        (f"transformer.{TO_Q}", {f"transformer.{TO_Q}.diff_b": some(64)}, "changes biases"),
        (UNET, kohya("lora_unet_final_layer_linear", 16), "(lora_unet_final_layer_linear.lora_"),
        (UNET, kohya("lora_unet_txt_in", 64, 48), "(lora_unet_txt_in.lora_down.weight"),
    ],
)
def test_what_diffusers_leaves_out_is_refused_unless_it_is_zero(
    folders: dict[str, Path], tmp_path: Path, known: str, more: Tensors, says: str
) -> None:
    """A LoRA with tensors that diffusers drops (T5, biases, norms, some layers) is refused by their
    names, and fused if they are zero."""
    plain = write(tmp_path / "plain.safetensors", kohya(known, alpha=4.0))
    file = write(tmp_path / "more.safetensors", kohya(known, alpha=4.0) | more)
    message = refusal(folders["flux"], file)
    assert says in message
    assert any(way in message for way in ("merge it into the model", "convert it to diffusers'"))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in more.items()}
    write(file, kohya(known, alpha=4.0) | zeros)
    found = open_source(folders["flux"], loras=[Lora(file)]).adapter
    expected = active(folders["flux"], [(plain, 1.0)])
    torch.testing.assert_close(prediction(found), prediction(expected), rtol=1e-4, atol=1e-5)


def test_layers_for_a_part_that_is_not_exported_are_remarked_on(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tensors = peft(f"transformer.{TO_Q}") | peft("text_encoder_3.encoder.block.0.q", 16, 48)
    file = write(tmp_path / "t5.safetensors", tensors)
    message = refusal(folders["sd3"], file)
    assert "for the text encoder T5" in message
    assert message.endswith("or export with --text-encoders no-t5.")
    for text_encoders in ("none", "no-t5"):
        source = open_source(folders["sd3"], text_encoders=text_encoders, loras=[Lora(file)])
        assert source.remarks == [
            f"The layers of {file} for T5 were left out, because the model is exported without it."
        ]
    plain = write(tmp_path / "plain.safetensors", peft(f"transformer.{TO_Q}"))
    expected = open_source(folders["sd3"], loras=[Lora(plain)]).adapter.transformer
    assert_same(source.adapter.transformer, expected)
    projection = kohya("text_encoders.clip_l.transformer.text_projection", 32, 32)
    write(file, kohya(f"{COMFY}.proj") | projection)
    [remark] = open_source(folders["flux"], loras=[Lora(file)]).remarks
    assert "for CLIP's projection were left out" in remark


def with_metadata(file: Path, alpha: int) -> Path:
    """A LoRA of FLUX for transformer and CLIP, with the alpha of both in its metadata."""
    tensors = load_file(write_lora("flux", file.with_name("made.safetensors"), encoders=True))
    layers, metadata = {}, {}
    sizes = (("transformer", 3, ATTENTION), ("text_encoder", 2, ["q_proj", "v_proj"]))
    for part, rank, targets in sizes:
        own = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(part)}
        layers[f"{part}_lora_layers"] = own
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
        metadata[f"{part}_lora_adapter_metadata"] = config.to_dict()
    FluxPipeline.save_lora_weights(file.parent, weight_name=file.name, **layers, **metadata)
    return file


def test_layers_for_clip_of_a_model_without_text_encoders(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Without text encoders, the rest of a LoRA is added with the alphas of its metadata."""
    file = with_metadata(tmp_path / "style.safetensors", alpha=12)
    expected = prediction(active(folders["flux"], [(file, 1.0)]))
    bare = tmp_path / "bare"
    ignore = shutil.ignore_patterns("text_encoder*", "tokenizer*")
    shutil.copytree(folders["flux"], bare, ignore=ignore)
    for folder in (bare, folders["flux"]):
        source = open_source(folder, text_encoders="none", loras=[Lora(file)])
        torch.testing.assert_close(prediction(source.adapter), expected, rtol=1e-4, atol=1e-5)
        [remark] = source.remarks
        assert "for CLIP were left out" in remark
    write(file, {k: v for k, v in load_file(file).items() if k.startswith("text_encoder.")})
    assert "is for CLIP only" in refusal(bare, file, text_encoders="none")


def test_a_lora_in_fp8(folders: dict[str, Path], tmp_path: Path) -> None:
    """A LoRA in fp8 gives what diffusers gives with the same values in float32."""
    half = {k: v.to(torch.float8_e4m3fn) for k, v in (kohya(UNET) | split_qkv()).items()}
    file = write(tmp_path / "fp8.safetensors", half)
    plain = write(tmp_path / "plain.safetensors", {k: v.float() for k, v in half.items()})
    found = open_source(folders["flux"], loras=[Lora(file)]).adapter
    expected = active(folders["flux"], [(plain, 1.0)])
    torch.testing.assert_close(prediction(found), prediction(expected), rtol=1e-4, atol=1e-5)
    write(file, {k: v.to(torch.int8) for k, v in half.items()})
    assert "is quantised (I8)" in refusal(folders["flux"], file)
    assert "holds no tensors" in refusal(folders["flux"], write(file, {}))


@pytest.mark.reported(
    "kohya-ss/sd-scripts#1743", "kohya-ss/sd-scripts#2103", "huggingface/diffusers#11653",
    "Nerogar/OneTrainer#1563",
)  # fmt: skip
@pytest.mark.parametrize(
    ("family", "tensors", "says"),
    [
        ("sd3", kohya("lora_unet_joint_blocks_0_x_block_attn_qkv", 192), "sd-scripts and ComfyUI"),
        ("sd3", kohya("diffusion_model.joint_blocks.0.x_block.attn.qkv", 192), "and ComfyUI name"),
        ("sd3", kohya(f"transformer.{TO_Q}"), "alpha"),
        ("sd3", peft(f"base_model.model.{TO_Q}"), "keeps alpha in adapter_config.json"),
        ("sd3", peft(TO_Q), "names layers in a way"),
        ("flux", peft(TO_Q), "names layers in a way"),
        ("flux", peft(f"base_model.model.{TO_Q}"), "keeps alpha in adapter_config.json"),
        ("flux", kohya(f"transformer.{TO_Q}"), "alpha"),
        ("flux", kohya("lora_transformer_single_transformer_blocks_0_proj_mlp", 256), "OneTrainer"),
        ("flux", {f"lycoris_{TO_Q}.lokr_w1": some(4, 4)}, "is a LoKr of LyCORIS"),
        ("sd3", {f"{TO_Q}.hada_w1_a": some(4, 4)}, "is a LoHa of LyCORIS"),
        ("sd3", peft(f"transformer.{TO_Q}") | {f"transformer.{TO_Q}.dora_scale": some(64)}, "DoRA"),
        (
            "flux",
            peft(f"transformer.{TO_Q}")
            | {"transformer.transformer_blocks.0.attn.norm_q.weight": some(16)},
            "is a control LoRA",
        ),
        ("flux", peft("transformer.x_embedder", 64, 32), "is a control LoRA"),
        ("flux2", kohya(f"transformer.{TO_Q}", 60, 60), "names layers in a way"),
    ],
)
def test_a_lora_of_another_format_is_called_what_it_is(
    folders: dict[str, Path], tmp_path: Path, family: str, tensors: Tensors, says: str
) -> None:
    """The refusal of a LoRA in a format that diffusers does not read names the format and the way
    out, and does not claim that it is for another model."""
    message = refusal(folders[family], write(tmp_path / "style.safetensors", tensors))
    assert says in message
    assert "trained on this model" not in message
    assert any(way in message for way in ("convert it", "merge it", "alpha", "leave it out"))


def split_qkv() -> Tensors:
    """Three layers in one: every third of the rows has factors of its own, all others are zero."""
    up = torch.zeros(192, 6)
    for third in range(3):
        up[64 * third : 64 * (third + 1), 2 * third : 2 * (third + 1)] = some(64, 2)
    name = "lora_unet_double_blocks_1_img_attn_qkv"
    return {
        f"{name}.lora_down.weight": some(6, 64),
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(2.0),
    }


def xlabs(name: str) -> Tensors:
    """A layer as the trainer of XLabs names its tensors."""
    return {f"{name}.down.weight": some(4, 64), f"{name}.up.weight": some(64, 4)}


@pytest.mark.parametrize(
    ("family", "tensors"),
    [
        ("flux", kohya(UNET) | split_qkv()),
        ("flux", kohya("lora_unet_single_blocks_0_modulation_lin", 192)),
        ("flux", kohya(f"{UNET[:-4]}qkv", 192)),
        ("flux", kohya(f"{COMFY}.proj")),
        ("flux", kohya(f"lora_transformer_{TO_Q.replace('.', '_')}")),
        ("flux", kohya(f"{CLIP}q_proj", 24, 24) | kohya(f"{CLIP}out_proj", 24, 24)),
        ("flux", xlabs("double_blocks.0.processor.proj_lora1")),
        ("flux", peft(f"transformer.{TO_Q}") | {f"transformer.{TO_Q}.lora_B.bias": some(64)}),
        ("flux2", kohya(f"{UNET[:-4]}qkv", 180, 60) | kohya(f"{SINGLE}_linear1", 420, 60)),
        ("flux2", peft(f"{COMFY}.qkv", 180, 60) | peft(f"{COMFY_SINGLE}.linear2", 60, 180)),
        ("flux2", peft("base_model.model.double_blocks.1.txt_mlp.0", 240, 60)),
        ("chroma", kohya(UNET)),
        ("chroma", kohya(f"{COMFY}.proj")),
        ("chroma", peft(f"transformer.{TO_Q}")),
        ("qwen-image", kohya(f"lora_unet_{TO_Q.replace('.', '_')}")),
        ("qwen-image", kohya(f"diffusion_model.{TO_Q}")),
        ("qwen-image", peft(f"transformer.{TO_Q}")),
        (
            "sd3",
            {
                "transformer.pos_embed.proj.lora_A.weight": some(4, 4, 2, 2),
                "transformer.pos_embed.proj.lora_B.weight": some(64, 4, 1, 1),
            },
        ),
    ],
)
def test_formats_that_diffusers_reads_are_fused(
    folders: dict[str, Path], tmp_path: Path, family: str, tensors: Tensors
) -> None:
    """A LoRA in any format that diffusers reads whole gives what diffusers gives with it."""
    file = write(tmp_path / "style.safetensors", tensors)
    found = open_source(folders[family], loras=[Lora(file, 0.5)]).adapter
    expected = active(folders[family], [(file, 0.5)])
    plain = open_source(folders[family]).adapter
    changed = []

    def encoded(adapter: Adapter) -> torch.Tensor:
        inputs = adapter.encode_prompts(["a boot"], 16)
        return inputs["pooled"] if "pooled" in inputs else inputs["text"]

    for what in (prediction, encoded):
        torch.testing.assert_close(what(found), what(expected), rtol=1e-4, atol=1e-5)
        changed.append(not torch.equal(what(found), what(plain)))
    assert any(changed)


def test_a_large_lora_of_a_low_precision_model(folders: dict[str, Path], tmp_path: Path) -> None:
    """Each of many tensors is told from the others, although peft rounds them to bfloat16."""
    folder = tmp_path / "model"
    shutil.copytree(folders["flux"], folder)
    stored = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(stored).items()}
    save_file(halves, stored, {"format": "pt"})
    idle = {f"diffusion_model.a{number:03}.diff_b": torch.zeros(1) for number in range(400)}
    file = write(tmp_path / "large.safetensors", idle | kohya(f"{COMFY}.proj"))
    open_source(folder, loras=[Lora(file)])
    write(file, idle | {"diffusion_model.a399.diff_b": torch.ones(1)} | kohya(f"{COMFY}.proj"))
    assert "changes biases (diffusion_model.a399.diff_b)" in refusal(folder, file)


def test_a_layer_with_one_matrix_only_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """peft leaves the missing matrix without memory, and nothing may be computed from that."""
    tensors = peft(f"transformer.{TO_Q}") | peft("transformer.transformer_blocks.1.attn.to_q")
    del tensors["transformer.transformer_blocks.1.attn.to_q.lora_B.weight"]
    message = refusal(folders["sd3"], write(tmp_path / "half.safetensors", tensors))
    assert "transformer_blocks.1.attn.to_q.lora_A" in message


def test_values_that_are_not_finite_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = peft(f"transformer.{TO_Q}")
    tensors[f"transformer.{TO_Q}.lora_B.weight"][3, 1] = float("nan")
    message = refusal(folders["sd3"], write(tmp_path / "nan.safetensors", tensors))
    assert f"not finite (transformer.{TO_Q}.lora_B.weight)" in message
