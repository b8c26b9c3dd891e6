"""Models in .gguf files: each tensor is what gguf unpacks, under the name that diffusers gives it.

Files are written by gguf. What they hold is unpacked by gguf and loaded by diffusers, from a plain
file, to compare.
"""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from gguf.quants import quantize
from safetensors.torch import load_file, save_file

import intaglio
from intaglio.__main__ import GROUP, run_python
from intaglio_export.errors import ExportError
from intaglio_export.sources import open_source
from tests.export import original
from tests.export.gguf_files import Kind, State, finish, write
from tests.export.sources import assert_same, edit
from tests.families import qwen_image, z_image

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
KINDS = [
    *("F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
]


def by_diffusers(cls: Any, base: Path, state: State, tmp_path: Path) -> Any:
    """The transformer that diffusers makes of `state`, which has the original names."""
    plain = tmp_path / "plain.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, plain)
    return cls.from_single_file(
        str(plain), config=str(base), subfolder="transformer", local_files_only=True
    )


def equal(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Compare bit for bit in float32."""
    assert_same(found.float(), expected.float())


@pytest.mark.parametrize("kind", KINDS)
def test_every_type(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """SD3 in Stability's names, as stable-diffusion.cpp and ComfyUI-GGUF keep them."""
    cls, base = diffusers.SD3Transformer2DModel, folders["sd3"]
    state = original.sd3_transformer(cls.from_pretrained(base / "transformer").state_dict())
    assert any(tensor.ndim == 2 and tensor.shape[1] == 256 for tensor in state.values())
    file = tmp_path / "tuned.gguf"
    held = write(file, state, Kind[kind], "sd3", license="CC0-1.0")
    source = open_source(file, config=str(base))
    equal(source.adapter.transformer, by_diffusers(cls, base, held, tmp_path))
    assert (source.name, source.license) == ("tuned", "CC0-1.0")


def test_numbers_agree_with_those_of_diffusers(folders: dict[str, Path], tmp_path: Path) -> None:
    """diffusers unpacks into float16."""
    cls, base = diffusers.SD3Transformer2DModel, folders["sd3"]
    state = original.sd3_transformer(cls.from_pretrained(base / "transformer").state_dict())
    write(file := tmp_path / "tuned.gguf", state, Kind.Q8_0, narrow=False)
    found = open_source(file, torch.float16, config=str(base)).adapter.transformer.state_dict()
    theirs = cls.from_single_file(
        str(file),
        config=str(base),
        subfolder="transformer",
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float16),
        torch_dtype=torch.float16,
        local_files_only=True,
    )
    theirs.dequantize()
    name = "transformer_blocks.1.ff.net.2.weight"
    assert torch.equal(found[name], theirs.state_dict()[name])


def z_image_folder(tmp_path: Path) -> tuple[Path, Any]:
    """Z-Image with 96 channels, which blocks of 32 fill."""
    pipeline = z_image.make_pipeline()
    config = dict(pipeline.transformer.config) | {"dim": 96, "axes_dims": [8, 8, 16]}
    torch.manual_seed(1)
    pipeline.transformer = diffusers.ZImageTransformer2DModel.from_config(config)
    for token in (pipeline.transformer.x_pad_token, pipeline.transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    pipeline.save_pretrained(tmp_path / "z-image")
    return tmp_path / "z-image", pipeline.transformer


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_z_image(tmp_path: Path, prefix: str) -> None:
    """The padding tokens [1, C] are [C] in the file."""
    base, transformer = z_image_folder(tmp_path)
    state = original.z_image_transformer(transformer.state_dict())
    assert state["x_pad_token"].shape == (1, 96)
    file = tmp_path / "tuned.gguf"
    held = write(file, {prefix + k: v for k, v in state.items()}, Kind.Q5_0, "lumina2")
    found = open_source(file, config=str(base)).adapter.transformer
    plain = {name.removeprefix(prefix): tensor for name, tensor in held.items()}
    equal(found, by_diffusers(type(transformer), base, plain, tmp_path))


def test_flux2(folders: dict[str, Path], tmp_path: Path) -> None:
    """FLUX.2 klein with 64 channels, in Black Forest Labs' names."""
    base, cls = tmp_path / "base", diffusers.Flux2Transformer2DModel
    shutil.copytree(folders["flux2"], base)
    changes = {"attention_head_dim": 32, "num_attention_heads": 2}
    edit(base / "transformer/config.json", axes_dims_rope=[4, 12, 8, 8], **changes)
    torch.manual_seed(1)
    transformer = cls.from_config(cls.load_config(base / "transformer"))
    state = original.flux2_transformer(transformer.state_dict())
    held = write(file := tmp_path / "tuned.gguf", state, Kind.Q4_1)
    found = open_source(file, config=str(base)).adapter.transformer
    equal(found, by_diffusers(cls, base, held, tmp_path))


@pytest.mark.parametrize("family", ["flux", "qwen-image", "chroma", "krea2"])
def test_the_names_of_diffusers(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Qwen-Image has no others, and diffusers converts FLUX.1 at its width of 3,072 only."""
    state = load_file(folders[family] / WEIGHTS)
    held = write(file := tmp_path / "tuned.gguf", state, Kind.Q8_0)
    found = open_source(file, config=str(folders[family])).adapter.transformer.state_dict()
    assert found.keys() == held.keys()
    for name, tensor in held.items():
        assert torch.equal(found[name].float(), tensor), name


def test_flux_in_the_original_format(folders: dict[str, Path], tmp_path: Path) -> None:
    """FLUX.1 of its own width; each tensor of its two blocks holds a number of its own."""
    base = tmp_path / "base"
    shutil.copytree(folders["flux"], base)
    changes = {"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 1}
    edit(base / "transformer/config.json", num_single_layers=1, **changes)
    edit(base / "transformer/config.json", axes_dims_rope=[16, 56, 56])
    with torch.device("meta"):
        options = diffusers.FluxTransformer2DModel.load_config(base / "transformer")
        shapes = diffusers.FluxTransformer2DModel.from_config(options).state_dict()
    numbers = {name: number / 64 for number, name in enumerate(shapes)}
    state = {
        name: torch.full(tensor.shape, numbers[name], dtype=torch.bfloat16)
        for name, tensor in shapes.items()
    }
    writer = GGUFWriter(file := tmp_path / "tuned.gguf", "flux")
    for name, tensor in original.flux_transformer(state).items():
        kind = Kind.Q8_0 if name == "single_blocks.0.linear2.weight" else Kind.BF16
        if kind == Kind.BF16:
            data = tensor.contiguous().view(torch.uint8).numpy()
        else:  # all blocks of a row are equal
            blocks = quantize(tensor[:, :32].float().numpy(), kind)
            data = np.tile(blocks, (1, tensor.shape[1] // 32))
        writer.add_tensor(name, data, raw_dtype=kind)
    del state
    finish(writer)
    found = open_source(file, torch.bfloat16, config=str(base)).adapter.transformer.state_dict()
    file.unlink()  # it is large
    assert found.keys() == shapes.keys()
    for name, tensor in shapes.items():
        assert found[name].shape == tensor.shape
        packed = name == "single_transformer_blocks.0.proj_out.weight"
        close = 2**-8 * numbers[name] if packed else 0  # a bfloat16 of the number times its scale
        assert bool(((found[name].float() - numbers[name]).abs() <= close).all()), name


T5 = {
    r"^shared": "token_embd",
    r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.([qkvo])\.": r"enc.blk.\1.attn_\2.",
    r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative.*\.": r"enc.blk.\1.attn_rel_b.",
    r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm": r"enc.blk.\1.attn_norm",
    r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm": r"enc.blk.\1.ffn_norm",
    r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0": r"enc.blk.\1.ffn_gate",
    r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1": r"enc.blk.\1.ffn_up",
    r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo": r"enc.blk.\1.ffn_down",
    r"^encoder\.final_layer_norm": "enc.output_norm",
}
QWEN3 = {
    r"^embed_tokens": "token_embd",
    r"^layers\.(\d+)\.": r"blk.\1.",
    r"self_attn\.([qkv])_proj": r"attn_\1",
    r"self_attn\.o_proj": "attn_output",
    r"self_attn\.([qk])_norm": r"attn_\1_norm",
    r"mlp\.(gate|up|down)_proj": r"ffn_\1",
    r"input_layernorm": "attn_norm",
    r"post_attention_layernorm": "ffn_norm",
    r"^norm\.": "output_norm.",
}


def by_llama(state: State, names: dict[str, str]) -> State:
    """`state` in the names of llama.cpp."""
    made = {}
    for name, tensor in state.items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        made[name] = tensor
    return made


def test_t5_in_its_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    """A .gguf file of T5 in place of the folder's .safetensors file."""
    shutil.copytree(folders["flux"], base := tmp_path / "base")
    folder = base / "text_encoder_2"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    held = write(folder / "t5-Q8_0.gguf", by_llama(state, T5), Kind.Q8_0, "t5encoder")
    found = open_source(base).adapter.pipeline.text_encoder_2.state_dict()
    expected = dict(zip(state, held.values(), strict=True))
    assert found.keys() - {"encoder.embed_tokens.weight"} == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].float(), tensor), name
    assert torch.equal(found["encoder.embed_tokens.weight"], found["shared.weight"])


def test_qwen3_in_its_folder(tmp_path: Path) -> None:
    base, _ = z_image_folder(tmp_path)
    folder = base / "text_encoder"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    held = write(folder / "qwen3.gguf", by_llama(state, QWEN3), Kind.Q8_0, "qwen3")
    found = open_source(base).adapter.pipeline.text_encoder.state_dict()
    for name, tensor in zip(state, held.values(), strict=True):
        assert torch.equal(found[name].float(), tensor), name
    write(folder / "qwen3.gguf", by_llama(state, QWEN3), Kind.Q8_0, "gemma3")
    assert "of the kind gemma3" in refusal(base)
    shutil.copy(folder / "qwen3.gguf", folder / "another.gguf")
    assert "several .gguf files, another.gguf and qwen3.gguf" in refusal(base)


def test_qwen2_5_vl_in_its_folder(tmp_path: Path) -> None:
    """Its eye is in another file of llama.cpp's; prompts are encoded without it."""
    pipeline = qwen_image.make_pipeline()
    pipeline.save_pretrained(base := tmp_path / "qwen-image")
    folder = base / "text_encoder"
    state = pipeline.text_encoder.state_dict()
    (folder / "model.safetensors").unlink()
    text = {
        name.replace("model.language_model.", "").replace("lm_head.", "output."): tensor
        for name, tensor in state.items()
        if ".visual." not in name
    }
    held = write(folder / "Qwen2.5-VL.gguf", by_llama(text, QWEN3), Kind.F16, "qwen2vl")
    found = open_source(base).adapter.pipeline
    names = [name for name in state if ".visual." not in name]
    weights = found.text_encoder.state_dict()
    assert {*weights} == {*names}
    for name, tensor in zip(names, held.values(), strict=True):
        assert name == "lm_head.weight" or torch.equal(weights[name].float(), tensor), name
    pipeline.text_encoder.load_state_dict(
        dict(zip(names, held.values(), strict=True)), strict=False
    )
    found.text_encoder.float()
    with torch.no_grad():
        ours, theirs = (one.encode_prompt("a boot")[0] for one in (found, pipeline))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("family", "prefix"),
    [("flux", ""), ("flux2", ""), ("qwen-image", ""), ("z-image", ""), ("z-image", "model.")],
)
def test_language_models_in_the_names_of_transformers(
    folders: dict[str, Path], tmp_path: Path, family: str, prefix: str
) -> None:
    """Each tensor is what gguf unpacks, where transformers puts it when it reads .safetensors.

    Z-Image has the model without its head, whose files may have the names of the whole.
    """
    base = tmp_path / "z-image"
    if family == "z-image":
        z_image_folder(tmp_path)
    else:
        shutil.copytree(folders[family], base)
    folder = base / ("text_encoder_2" if family == "flux" else "text_encoder")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stored = {name: tensor for name, tensor in state.items() if tensor.ndim < 5}
    named = {prefix + name: tensor for name, tensor in stored.items()}
    held = write(folder / "tuned.gguf", named, Kind.Q8_0, "pig")
    found = getattr(open_source(base).adapter.pipeline, folder.name)
    plain = {name: held[prefix + name].contiguous() for name in stored} | {
        name: tensor for name, tensor in state.items() if tensor.ndim == 5
    }
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    theirs = type(found).from_pretrained(folder, dtype=torch.float32).state_dict()
    weights = {name: tensor.float() for name, tensor in found.state_dict().items()}
    assert {*weights} == {name for name in theirs if ".visual." not in name}
    for name, tensor in weights.items():  # of the head no prompt needs anything
        assert name == "lm_head.weight" or torch.equal(tensor, theirs[name]), name


def refusal(source: Path, config: Path | None = None) -> str:
    with pytest.raises(ExportError) as caught:
        open_source(source, config=str(config) if config else None)
    assert caught.value.exit_code == 3
    assert caught.value.message.count(". ") == 0
    return caught.value.message


@pytest.mark.parametrize("share", [0.001, 0.2, 0.6, 0.999])
def test_files_that_are_cut_short(folders: dict[str, Path], tmp_path: Path, share: float) -> None:
    write(file := tmp_path / "cut.gguf", load_file(folders["flux"] / WEIGHTS), Kind.Q8_0)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert f"The file {file} is cut short or not a .gguf file" in refusal(file, folders["flux"])


def test_files_that_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    base, file = folders["flux"], tmp_path / "model.gguf"
    state = load_file(base / WEIGHTS)
    name = "transformer_blocks.0.attn.to_q.weight"
    one = {name: state[name]}
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "is a pointer of Git LFS" in refusal(file, base)
    file.write_bytes(b"")
    assert "is cut short or not" in refusal(file, base)
    write(file, {"token_embd.weight": state[name], "blk.0.attn_q.weight": state[name]}, Kind.F16)
    assert "is a language model (T5, Qwen3, ...) and not a transformer" in refusal(file, base)
    writer = GGUFWriter(file, "flux")
    writer.add_tensor(name, np.zeros((4, 292), np.uint8), raw_dtype=Kind.Q8_K)
    finish(writer)
    assert "of the type Q8_K, which gguf" in refusal(file, base)
    write(file, one, Kind.Q8_0)
    data = bytearray(file.read_bytes())
    at = data.index(name.encode()) + len(name) + 4 + 2 * 8  # behind the number of dimensions
    assert data[at] == Kind.Q8_0
    data[at] = 211
    file.write_bytes(data)
    assert "of the type number 211, which gguf" in refusal(file, base)
    data[at] = Kind.Q8_0
    data[-34:-32] = np.float16(np.nan).tobytes()  # the scale of the last block
    file.write_bytes(data)
    assert f"a number in {name} that is not finite" in refusal(file, base)
    write(file, state | {"transformer_blocks.0.adapter.weight": state[name]}, Kind.Q8_0)
    assert "it has transformer_blocks.0.adapter.weight, which the" in refusal(file, base)
    write(file, {k: v for k, v in state.items() if k != name}, Kind.Q8_0)
    assert f"it lacks {name}" in refusal(file, base)


def test_an_export(folders: dict[str, Path], tmp_path: Path) -> None:
    """The bundle's pictures are those of diffusers with the numbers that gguf unpacks."""
    cls, base = diffusers.SD3Transformer2DModel, folders["sd3"]
    state = original.sd3_transformer(cls.from_pretrained(base / "transformer").state_dict())
    held = write(file := tmp_path / "tuned.gguf", state, Kind.Q8_0)
    settings = tmp_path / "settings.json"
    settings.write_text(
        json.dumps(
            {"steps": 2, "height": 32, "width": 32, "cfg_scale": 1, "max_sequence_length": 16}
        )
    )
    command = EntryPoint("export", "intaglio_export.cli:export", GROUP)
    words = [file, "--config", base, "-o", tmp_path / "bundle", "--settings", settings]
    assert run_python(command, [*map(str, words), "--text-encoders", "no-t5"]) == 0
    pipeline = intaglio.Pipeline.open(tmp_path / "bundle", threads=1)
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(3))
    found = pipeline.generate("a red boot", latents=noise.numpy(), dg_scale=0.0).latents
    theirs = diffusers.StableDiffusion3Pipeline.from_pretrained(
        base,
        transformer=by_diffusers(cls, base, held, tmp_path),
        text_encoder_3=None,
        tokenizer_3=None,
        image_encoder=None,
        feature_extractor=None,
    )
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a red boot",
        latents=noise,
        num_inference_steps=2,
        height=32,
        width=32,
        guidance_scale=1.0,
        max_sequence_length=16,
        output_type="latent",
    ).images
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)
