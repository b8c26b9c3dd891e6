"""LoRAs fused by the export give what diffusers gives with the same LoRA active."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from intaglio_export.adapters import Adapter
from intaglio_export.errors import ExportError
from intaglio_export.options import Lora, parse_lora
from intaglio_export.sources import open_source
from tests.export.sources import FAMILIES, assert_same, prediction

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def randomize(network: Any, seed: int) -> None:
    """Both halves of every LoRA layer at random: peft starts with one at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.named_parameters():
        if ".lora_" in name:
            tensor.data = torch.randn(tensor.shape, generator=generator)


def write_lora(
    family: str, path: Path, seed: int = 0, encoders: bool = False, targets: Any = ATTENTION
) -> Path:
    """A LoRA of rank 3 and alpha 6 for a tiny pipeline, by peft and save_lora_weights."""
    pipeline = FAMILIES[family]()
    pipeline.transformer.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    randomize(pipeline.transformer, seed)
    layers = {"transformer_lora_layers": get_peft_model_state_dict(pipeline.transformer)}
    if encoders:
        config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"])
        pipeline.text_encoder.add_adapter(config)
        randomize(pipeline.text_encoder, seed + 1)
        state = get_peft_model_state_dict(pipeline.text_encoder, adapter_name="default")
        layers["text_encoder_lora_layers"] = state
    pipeline.save_lora_weights(path.parent, weight_name=path.name, **layers)
    return path


def active(folder: Path, loras: list[tuple[Path, float]]) -> Adapter:
    """diffusers' own float32 pipeline with the LoRAs loaded, scaled and not fused."""
    adapter = open_source(folder).adapter
    names = [f"lora{i}" for i in range(len(loras))]
    for name, (file, _) in zip(names, loras, strict=True):
        adapter.pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    adapter.pipeline.set_adapters(names, [scale for _, scale in loras])
    return adapter


@pytest.mark.parametrize("family", ["sd3", "flux", "flux2", "chroma", "qwen-image", "krea2"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]
)
def test_a_fused_lora_predicts_as_diffusers_does_with_it_active(
    folders: dict[str, Path], tmp_path: Path, family: str, dtype: torch.dtype, tolerance: float
) -> None:
    file = write_lora(family, tmp_path / "style.safetensors")
    expected = prediction(active(folders[family], [(file, 0.7)]))
    without = prediction(open_source(folders[family]).adapter)
    assert relative(without, expected) > 4 * tolerance
    source = open_source(folders[family], dtype, loras=[Lora(file, 0.7)])
    assert relative(prediction(source.adapter), expected) < tolerance
    last = (
        source.adapter.transformer.proj_out
        if family != "krea2"
        else source.adapter.transformer.final_layer.linear
    )
    assert last.weight.dtype == dtype
    assert source.loras == (Lora(file, 0.7),)
    plain = open_source(folders[family]).adapter.transformer
    assert source.adapter.transformer.state_dict().keys() == plain.state_dict().keys()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_two_loras_and_one_of_them_for_a_text_encoder_too(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    first = write_lora(family, tmp_path / "first.safetensors", encoders=True)
    second = write_lora(family, tmp_path / "second.safetensors", seed=5)
    expected = active(folders[family], [(first, 1.0), (second, -0.5)])
    loras = [Lora(first), Lora(second, -0.5)]
    found = open_source(folders[family], loras=loras).adapter
    torch.testing.assert_close(prediction(found), prediction(expected), rtol=1e-4, atol=1e-5)
    prompts = [adapter.encode_prompts(["a boot"], 16) for adapter in (found, expected)]
    assert not torch.equal(
        prompts[0]["pooled"],
        open_source(folders[family]).adapter.encode_prompts(["a boot"], 16)["pooled"],
    )
    for role, tensor in prompts[0].items():
        torch.testing.assert_close(tensor, prompts[1][role], rtol=1e-4, atol=1e-5)


def change(file: Path, name: str, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy with other tensors."""
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file.with_name(name))
    return file.with_name(name)


def refusal(folder: Path, file: Path, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        open_source(folder, loras=[Lora(file)], **options)
    assert caught.value.exit_code == 3
    for raw in ("low_cpu_mem", "issue", "\n", "adapter_name", "state_dict"):
        assert raw not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_lora_that_does_not_fit_is_refused(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    good = write_lora(family, tmp_path / "good.safetensors")
    a = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"

    def one_more(tensors: dict[str, torch.Tensor]) -> None:
        for half in "AB":
            strange = tensors[a.replace("_A", f"_{half}")].clone()
            tensors[f"transformer.transformer_blocks.9.attn.to_q.lora_{half}.weight"] = strange

    def none(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("transformer.", "unet.")] = tensors.pop(name)

    def wider(tensors: dict[str, torch.Tensor]) -> None:
        tensors[a] = torch.zeros(3, 80)

    def not_one(tensors: dict[str, torch.Tensor]) -> None:
        tensors.clear()
        tensors["conv.weight"] = torch.zeros(2)

    for name, edit, says in (
        ("more", one_more, "transformer_blocks.9.attn.to_q"),
        ("none", none, "unet."),
        ("wider", wider, ""),
        ("other", not_one, ""),
    ):
        file = change(good, f"{name}.safetensors", edit)
        message = refusal(folders[family], file)
        assert message.startswith(f"The LoRA {file} does not fit this ")
        assert says in message


def test_a_lora_of_another_family_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    sd3 = write_lora("sd3", tmp_path / "sd3.safetensors")
    targets = ["proj_mlp", "to_q"]
    flux = write_lora("flux", tmp_path / "flux.safetensors", targets=targets)
    assert "single_transformer_blocks" in refusal(folders["sd3"], flux)
    assert "attn2" in refusal(folders["flux"], sd3)


def test_files_that_are_no_lora(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "does not exist" in refusal(folders["sd3"], tmp_path / "none.safetensors")
    renamed = write_lora("sd3", tmp_path / "style.safetensors").rename(tmp_path / "style.sft")
    assert "does not end in .safetensors" in refusal(folders["sd3"], renamed)
    (tmp_path / "text.safetensors").write_text("no tensors here")
    assert "not a .safetensors file" in refusal(folders["sd3"], tmp_path / "text.safetensors")


@pytest.mark.parametrize("family", ["dit", "pixart-sigma"])
def test_families_without_a_lora_loader(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    file = write_lora("sd3", tmp_path / "style.safetensors")
    message = refusal(folders[family], file)
    assert f"diffusers has no LoRA loader for {family} models" in message


def test_a_scale_of_zero_changes_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    file = write_lora("sd3", tmp_path / "style.safetensors")
    source = open_source(folders["sd3"], loras=[Lora(file, 0.0)])
    plain = open_source(folders["sd3"])
    assert_same(source.adapter.transformer, plain.adapter.transformer)


@pytest.mark.reported("ml-explore/mlx-examples#832", "meta-pytorch/torchtune#1101")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_small_change_of_a_low_precision_model_is_not_rounded_away(
    folders: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    """A LoRA is added in float32 to a model that is stored in bfloat16, and the sum is rounded to
    the exported type once."""
    folder = tmp_path / "model"
    shutil.copytree(folders["flux"], folder)
    for part in ("transformer/diffusion_pytorch_model", "text_encoder/model"):
        file = folder / f"{part}.safetensors"
        halves = {k: v.bfloat16() for k, v in load_file(file).items()}
        save_file(halves, file, {"format": "pt"})
    made = write_lora("flux", tmp_path / "made.safetensors", encoders=True)

    def small(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] *= 0.02

    loras = [Lora(change(made, "small.safetensors", small)), Lora(made, 1e-4)]
    plain, found = (
        open_source(folder, torch.float32 if not added else dtype, loras=added).adapter.pipeline
        for added in ((), loras)
    )
    changed = 0
    for part in ("transformer", "text_encoder"):
        before = dict(getattr(plain, part).named_parameters())
        updates = [updates_of(lora, part) for lora in loras]
        for name, weight in getattr(found, part).named_parameters():
            added = sum(update.get(name.removeprefix("text_model."), 0) for update in updates)
            expected = (before[name].double() + added).to(weight.dtype)
            changed += not torch.equal(expected, before[name].to(weight.dtype))
            once = torch.finfo(weight.dtype).eps
            torch.testing.assert_close(weight, expected, rtol=once, atol=1e-9)
    assert changed > 10


def updates_of(lora: Lora, part: str) -> dict[str, torch.Tensor]:
    """What a LoRA of `write_lora` adds to each weight, in float64."""
    tensors = {k.removeprefix(f"{part}."): v.double() for k, v in load_file(lora.file).items()}
    return {
        name.replace(".lora_A", "").removeprefix("text_model."): lora.scale
        * tensors[name.replace("_A", "_B")]
        @ tensors[name]
        for name in tensors
        if ".lora_A" in name
    }


def test_what_a_flag_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:2").touch()
    assert parse_lora("f.safetensors") == Lora(Path("f.safetensors"), 1.0)
    assert parse_lora("f.safetensors:-0.5") == Lora(Path("f.safetensors"), -0.5)
    assert parse_lora("C:f.safetensors") == Lora(Path("C:f.safetensors"), 1.0)
    assert parse_lora("a:2") == Lora(Path("a:2"), 1.0)
    assert parse_lora("a:2:3") == Lora(Path("a:2"), 3.0)
    for wrong in ("", ":2", "f:nan", "f:inf"):
        with pytest.raises(ExportError, match="expected FILE or FILE:SCALE") as caught:
            parse_lora(wrong)
        assert caught.value.exit_code == 2
