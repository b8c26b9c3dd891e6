"""Single files: the transformer or a whole pipeline, in the original format or diffusers'."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from intaglio_export.errors import ExportError
from intaglio_export.sources import filling, open_source
from intaglio_export.sources.parts import Part
from tests.export import original
from tests.export.sources import FAMILIES, assert_same, edit

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


# ComfyUI, its parts alone, diffusers, PyTorch's parallel and compiled modules, Lightning.
PREFIXES = [
    "",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "module.",
    "_orig_mod.",
    "model.",
]


@pytest.fixture
def config(folders: dict[str, Path], tmp_path: Path) -> Path:
    """SD3's folder, with a transformer whose weights are other than the single file's."""
    shutil.copytree(folders["sd3"], tmp_path / "base")
    state = load_file(tmp_path / "base" / WEIGHTS)
    save_file({k: v + 1 for k, v in state.items()}, tmp_path / "base" / WEIGHTS)
    (tmp_path / "base" / "settings.json").write_text('{"dg_scale": 3}')
    return tmp_path / "base"


def write(path: Path, state: dict[str, torch.Tensor], **metadata: str) -> Path:
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(state, path, {"format": "pt"} | metadata)
    return path


@pytest.mark.reported("huggingface/diffusers#10540", "huggingface/diffusers#9243")
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_transformer_in_the_original_format(config: Path, tmp_path: Path, prefix: str) -> None:
    """Whatever a program writes before the names of a transformer's tensors is taken off."""
    pipeline = FAMILIES["sd3"]()
    state = original.sd3_transformer(pipeline.transformer.state_dict())
    file = write(
        tmp_path / "tuned.safetensors",
        {prefix + name: tensor for name, tensor in state.items()},
        **{"modelspec.license": "CC0-1.0"},
    )
    source = open_source(file, config=str(config))
    assert_same(source.adapter.transformer, pipeline.transformer)
    assert_same(source.adapter.pipeline.text_encoder_3, pipeline.text_encoder_3)
    assert (source.name, source.license, source.settings) == ("tuned", "CC0-1.0", None)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    ("family", "rename"),
    [("flux2", original.flux2_transformer), ("krea2", original.krea2_transformer)],
)
def test_newer_families_in_the_original_format(
    folders: dict[str, Path], tmp_path: Path, family: str, rename: Any, prefix: str
) -> None:
    pipeline = FAMILIES[family]()
    with torch.no_grad():
        for weight in pipeline.transformer.parameters():
            weight += 1
    state = rename(pipeline.transformer.state_dict())
    tensors = {prefix + name: tensor for name, tensor in state.items()}
    file = write(tmp_path / "tuned.safetensors", tensors)
    source = open_source(file, config=str(folders[family]))
    assert_same(source.adapter.transformer, pipeline.transformer)
    assert_same(source.adapter.pipeline.vae, pipeline.vae)


def test_chroma_in_the_original_format(folders: dict[str, Path], tmp_path: Path) -> None:
    """The converter reads the width of 3,072 only, so this is a wide model of two blocks."""
    config = tmp_path / "base"
    shutil.copytree(folders["chroma"], config)
    edit(
        config / "transformer" / "config.json",
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=24,
        attention_head_dim=128,
        axes_dims_rope=[16, 56, 56],
    )
    with torch.device("meta"):
        options = diffusers.ChromaTransformer2DModel.load_config(config / "transformer")
        shapes = diffusers.ChromaTransformer2DModel.from_config(options).state_dict()
    state = {
        name: torch.full(tensor.shape, float(number), dtype=torch.float16)
        for number, (name, tensor) in enumerate(shapes.items())
    }
    file = write(tmp_path / "tuned.safetensors", original.flux_transformer(state))
    found = open_source(file, torch.float16, config=str(config)).adapter.transformer.state_dict()
    file.unlink()  # it is large
    assert found.keys() == shapes.keys()
    for number, (name, tensor) in enumerate(shapes.items()):
        assert found[name].shape == tensor.shape
        assert bool((found[name] == number).all()), name


@pytest.mark.parametrize("family", ["sd3", "flux", "chroma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_transformer_in_the_format_of_diffusers(
    folders: dict[str, Path], tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    file = tmp_path / "tuned.safetensors"
    shutil.copy(folders[family] / WEIGHTS, file)
    base = tmp_path / "base"
    shutil.copytree(folders[family], base)
    (base / WEIGHTS).unlink()
    found = open_source(file, dtype, config=str(base)).adapter
    expected = open_source(folders[family], dtype).adapter
    for name in ("transformer", "vae", "text_encoder"):
        assert_same(getattr(found.pipeline, name), getattr(expected.pipeline, name))


def test_a_whole_pipeline(config: Path, tmp_path: Path) -> None:
    pipeline = FAMILIES["sd3"]()
    with torch.no_grad():  # diffusers gives this one, which the original has not, as identity
        pipeline.text_encoder.text_projection.weight.copy_(torch.eye(16))
    file = write(tmp_path / "all.safetensors", original.sd3_pipeline(pipeline))
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        for weights in (config / part).glob("*.safetensors"):
            weights.unlink()
    source = open_source(file, config=str(config))
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        assert_same(getattr(source.adapter.pipeline, part), getattr(pipeline, part))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_before_the_names_of_diffusers(
    folders: dict[str, Path], tmp_path: Path, prefix: str
) -> None:
    state = load_file(folders["flux"] / WEIGHTS)
    file = write(tmp_path / "tuned.safetensors", {prefix + k: v + 1 for k, v in state.items()})
    found = open_source(file, config=str(folders["flux"])).adapter.transformer.state_dict()
    assert all(torch.equal(found[name], tensor + 1) for name, tensor in state.items())


def test_a_copy_of_the_transformer_beside_it(config: Path, tmp_path: Path) -> None:
    """Which of two transformers is meant cannot be known, for example of a mean over training."""
    state = FAMILIES["sd3"]().transformer.state_dict()
    file = write(
        tmp_path / "two.safetensors",
        {prefix + name: tensor for prefix in ("ema.", "model.") for name, tensor in state.items()},
    )
    assert "several transformers, whose names start with 'ema.' and 'model.'" in refusal(
        file, config=str(config)
    )


@pytest.mark.reported("huggingface/diffusers#12669", "AUTOMATIC1111/stable-diffusion-webui#16484")
@pytest.mark.parametrize("absent", ["encoder.embed_tokens.weight", "shared.weight"])
def test_a_file_that_holds_tied_weights_once(config: Path, tmp_path: Path, absent: str) -> None:
    """A file need not hold both names of T5's embeddings, and may hold what ComfyUI adds."""
    pipeline = FAMILIES["sd3"]()
    state = original.sd3_pipeline(pipeline)
    del state[f"text_encoders.t5xxl.transformer.{absent}"]
    state |= {
        "text_encoders.t5xxl.logit_scale": torch.tensor(4.6),
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.ones(16, 16),
        "text_encoders.clip_g.transformer.text_model.embeddings.position_ids": torch.arange(16),
        "model_sampling.sigmas": torch.ones(1000),
    }
    found = open_source(write(tmp_path / "all.safetensors", state), config=str(config)).adapter
    t5 = found.pipeline.text_encoder_3
    assert_same(t5, pipeline.text_encoder_3)
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
    assert_same(found.pipeline.text_encoder_2, pipeline.text_encoder_2)


@pytest.mark.parametrize("name", ["x.lora_A.weight", "lora_unet_x.lora_up.weight"])
def test_a_lora_in_place_of_a_model(config: Path, tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "style.safetensors", {name: torch.ones(2, 2)})
    message = refusal(file, config=str(config))
    assert message.startswith(f"The file {file} is a LoRA, not a model; ")
    assert message.endswith("with --lora.")


def test_a_file_whose_text_encoders_are_not_wanted(config: Path, tmp_path: Path) -> None:
    """--text-encoders no-t5 leaves the T5 of a file out, too."""
    file = write(tmp_path / "all.safetensors", original.sd3_pipeline(FAMILIES["sd3"]()))
    found = open_source(file, config=str(config), text_encoders="no-t5").adapter.pipeline
    assert found.text_encoder_3 is None


def refusal(file: Path, code: int = 3, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        open_source(file, **options)
    assert caught.value.exit_code == code
    assert "low_cpu_mem" not in caught.value.message
    return caught.value.message


def test_calls_that_do_not_go_together(config: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "f.safetensors", {"a": torch.zeros(1)})
    assert "with --config" in refusal(file, code=2)
    assert "does not exist" in refusal(tmp_path / "g.safetensors", config=str(config))
    assert "and none is not one" in refusal(Path("none"), code=2, config=str(config))
    (tmp_path / "f.ckpt").touch()
    assert "neither a folder nor a .safetensors or .gguf file" in refusal(tmp_path / "f.ckpt")
    assert "does not exist" in refusal(file, config=str(tmp_path / "none"))
    assert "is not a folder" in refusal(file, config=str(file))


@pytest.mark.parametrize("family", ["dit", "pixart-sigma"])
def test_families_that_diffusers_reads_no_files_of(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    message = refusal(folders[family] / WEIGHTS, config=str(folders[family]))
    assert f"diffusers cannot read a single file such as {folders[family] / WEIGHTS}" in message
    assert family in message


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (diffusers.FluxTransformer2DModel, {"guidance_embeds": True}),
        (diffusers.ChromaTransformer2DModel, {"approximator_layers": 3}),
    ],
)
def test_the_original_format_of_flux_fits(
    tmp_path: Path, cls: type, options: dict[str, Any]
) -> None:
    """By names and shapes: diffusers converts FLUX at its own width of 3,072 only."""
    with torch.device("meta"):
        model = cls(num_layers=3, num_single_layers=2, **options)
    expected = model.state_dict()
    converted = filling.converted(
        tmp_path / "flux.safetensors",
        Part(tmp_path, "transformer", type(model)),
        original.flux_transformer(expected),
        {},
    )
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in expected.items()}


def test_files_that_are_not_the_model(
    folders: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    model = FAMILIES["sd3"]().transformer.state_dict()
    good = original.sd3_transformer(model)
    block = "joint_blocks.1.x_block.attn.qkv.weight"
    cases: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "no_tensors": ({}, "it has no blocks"),
        "other": ({"conv.weight": torch.zeros(2)}, "it has no blocks"),
        "lacking": ({k: v for k, v in good.items() if k != block}, f"it lacks {block}"),
        "wide": (good | {"x_embedder.proj.bias": torch.zeros(65)}, "is 65 in it and 64 in"),
        "more": (good | {"adapter.weight": torch.ones(1)}, "holds more than such a model"),
        "llama": (good | {"text_encoders.llama.x": torch.ones(1)}, "more (text_encoders.llama.x)"),
        "deep": (
            good | {k.replace(".1.", ".4."): v for k, v in good.items() if "blocks.1." in k},
            "it lacks joint_blocks.3.context_block",
        ),
        "ours_lacking": ({k: v for k, v in model.items() if k != "proj_out.bias"}, "proj_out.bias"),
        "flux": (load_file(folders["flux"] / WEIGHTS), " in it and "),
        "no_vae": (good | {"first_stage_model.decoder.conv_in.bias": torch.zeros(16)}, ""),
        "no_clip": (good | {"text_encoders.clip_l.transformer.x": torch.zeros(16)}, ""),
    }
    for name, (state, says) in cases.items():
        file = write(tmp_path / f"{name}.safetensors", state)
        message = refusal(file, config=str(config))
        assert message.startswith(f"The file {file} does not hold the "), name
        assert says in message, message
    file.write_bytes(file.read_bytes()[:-10])
    assert "is cut short" in refusal(file, config=str(config))
