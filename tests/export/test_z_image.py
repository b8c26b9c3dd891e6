"""Z-Image against diffusers: its sequences as fixed tensors, its defaults, and what is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM, Qwen3Model

from intaglio_export.adapters.z_image import ZImageAdapter
from intaglio_export.errors import ExportError
from intaglio_export.exporter import say_distilled
from intaglio_export.options import Lora, ModelSettings, read_settings
from intaglio_export.sources import open_source
from tests.export import original
from tests.export.sources import assert_same, prediction
from tests.export.test_lora import ATTENTION, active, randomize, relative
from tests.families.z_image import MAX_LENGTH, make_pipeline

# Of 51, 15 and 14 tokens with the template, which the model fills up to 64, 32 and 32.
PROMPTS = ["the dark boot and THE rest of a dress in a photograph with the rest, 1999 99", "a", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "z-image"
    make_pipeline().save_pretrained(path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("grid", [(5, 7), (4, 8), (2, 3)])
def test_fixed_tensors_equal_the_transformers_lists(grid: tuple[int, int]) -> None:
    """Image tokens are filled up or not, and three prompts are of different lengths."""
    pipeline = make_pipeline()
    adapter = ZImageAdapter(pipeline)
    latent = torch.randn(3, 4, 2 * grid[0], 2 * grid[1], generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([900.0, 500.0, 30.0])
    text = adapter.encode_prompts(PROMPTS, MAX_LENGTH)
    got = adapter.predict(text | {"latent": latent, "timestep": timestep})
    prompts, _ = pipeline.encode_prompt(
        list(PROMPTS), do_classifier_free_guidance=False, max_sequence_length=MAX_LENGTH
    )
    assert [len(prompt) for prompt in prompts] == [51, 15, 14]
    (made,) = pipeline.transformer(
        list(latent.unsqueeze(2)), (1000 - timestep) / 1000, prompts, return_dict=False
    )
    torch.testing.assert_close(got, -torch.stack(made).squeeze(2), rtol=1e-6, atol=1e-6)


def test_turbo_is_known_by_its_schedulers_shift() -> None:
    base, turbo = (ZImageAdapter(make_pipeline(shift)) for shift in (6.0, 3.0))
    found = [(a.distilled, a.defaults().steps, a.defaults().cfg_scale) for a in (base, turbo)]
    assert found == [(False, 50, 6.0), (True, 8, 1.0)]


def test_settings_say_that_a_model_with_turbos_shift_takes_cfg(tmp_path: Path) -> None:
    adapter = ZImageAdapter(make_pipeline(shift=3.0))
    (remark,) = say_distilled(adapter, ModelSettings())
    assert '"distilled": false' in remark
    assert (adapter.distilled, adapter.defaults().cfg_scale) == (True, 1.0)
    (tmp_path / "settings.json").write_text('{"distilled": false}')
    assert say_distilled(adapter, read_settings(tmp_path / "settings.json")) == []
    assert (adapter.distilled, adapter.defaults().cfg_scale) == (False, 6.0)
    assert say_distilled(ZImageAdapter(make_pipeline(shift=6.0)), ModelSettings()) == []


def test_prompts_without_a_position_are_refused() -> None:
    adapter = ZImageAdapter(make_pipeline())
    assert adapter.prompt(128) is not None
    with pytest.raises(ExportError, match="is 129, and the transformer has positions for 128"):
        adapter.prompt(129)


def test_a_text_encoder_that_was_saved_with_its_head(folder: Path, tmp_path: Path) -> None:
    """As on the Hub, where the index names Qwen3Model and the weights have another prefix."""
    expected = open_source(folder).adapter.pipeline.text_encoder
    whole = Qwen3ForCausalLM(expected.config)
    whole.model.load_state_dict(expected.state_dict())
    shutil.copytree(folder, tmp_path / "source")
    whole.save_pretrained(tmp_path / "source" / "text_encoder")
    loaded = open_source(tmp_path / "source").adapter.pipeline.text_encoder
    assert type(loaded) is Qwen3Model
    assert_same(loaded, expected)


def spelled(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    """A LoRA in diffusers' names, and as ComfyUI and sd-scripts write it, with alpha 6."""
    if how == "diffusers":
        return {f"transformer.{name}": tensor for name, tensor in state.items()}
    made: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        layer, _, half = name.removesuffix(".weight").rpartition(".lora_")
        if how == "comfyui":
            made[f"diffusion_model.{layer}.lora_{half}.weight"] = tensor
            made[f"diffusion_model.{layer}.alpha"] = torch.tensor(6.0)
        else:
            flat = "lora_unet_" + layer.replace(".", "_")
            made[f"{flat}.lora_{'down' if half == 'A' else 'up'}.weight"] = tensor
            made[f"{flat}.alpha"] = torch.tensor(6.0)
    return made


@pytest.mark.parametrize("how", ["diffusers", "comfyui", "kohya"])
def test_a_fused_lora_predicts_as_diffusers_does(folder: Path, tmp_path: Path, how: str) -> None:
    pipeline = make_pipeline()
    targets = ATTENTION[:3]
    pipeline.transformer.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    randomize(pipeline.transformer, 0)
    file = tmp_path / "style.safetensors"
    state = get_peft_model_state_dict(pipeline.transformer)
    save_file({k: v.contiguous() for k, v in spelled(state, how).items()}, file)
    expected = prediction(active(folder, [(file, 0.7)]))
    assert relative(prediction(open_source(folder).adapter), expected) > 1e-3
    source = open_source(folder, loras=[Lora(file, 0.7)])
    assert relative(prediction(source.adapter), expected) < 1e-5


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_of_comfyui(folder: Path, tmp_path: Path, prefix: str) -> None:
    transformer = make_pipeline().transformer
    changed = {name: 2 * tensor for name, tensor in transformer.state_dict().items()}
    file = tmp_path / "z_image.safetensors"
    save_file(
        {prefix + k: v.contiguous() for k, v in original.z_image_transformer(changed).items()}, file
    )
    loaded = open_source(file, config=str(folder)).adapter.transformer
    transformer.load_state_dict(changed)
    assert_same(loaded, transformer)
    held = load_file(file)
    del held[f"{prefix}layers.3.attention.out.weight"]
    save_file(held, cut := tmp_path / "cut.safetensors")
    with pytest.raises(ExportError, match=r"attention\.to_out\.0\.weight"):
        open_source(cut, config=str(folder))


def test_an_all_in_one_file_of_comfyui(folder: Path, tmp_path: Path) -> None:
    """With the language model, whose head ComfyUI may store, and the VAE."""
    pipeline = make_pipeline()
    with torch.no_grad():
        for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
            for parameter in part.parameters():
                parameter.mul_(2.0)
    encoder = {f"model.{name}": x for name, x in pipeline.text_encoder.state_dict().items()}
    encoder["lm_head.weight"] = encoder["model.embed_tokens.weight"]
    parts = {
        "model.diffusion_model.": original.z_image_transformer(pipeline.transformer.state_dict()),
        "text_encoders.qwen3_4b.transformer.": encoder,
        "vae.": original.vae(pipeline.vae.state_dict(), 2),
    }
    held = {prefix + k: v.clone() for prefix, state in parts.items() for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in held.items()}, file := tmp_path / "all.safetensors")
    loaded = open_source(file, config=str(folder)).adapter.pipeline
    for name in ("transformer", "text_encoder", "vae"):
        assert_same(getattr(loaded, name), getattr(pipeline, name))
    lost = "text_encoders.qwen3_4b.transformer.model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in held.items() if k != lost}, cut := tmp_path / "cut.safetensors")
    with pytest.raises(ExportError, match=r"Qwen3Model .* lacks layers\.1\.mlp\.up_proj\.weight"):
        open_source(cut, config=str(folder))
