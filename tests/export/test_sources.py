"""Folders: what is loaded from them, and what is said of broken ones, in every family."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from intaglio_export.errors import ExportError
from intaglio_export.sources import open_source
from intaglio_export.sources.parts import Part, load_part
from tests.export.sources import FAMILIES, assert_same, edit

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
Break = Callable[[Path], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rename(path: Path, *pairs: tuple[str, str]) -> None:
    """Rename tensors."""
    state = load_file(path)
    for old, new in pairs:
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    save_file(state, path, {"format": "pt"})


def narrow(path: Path) -> None:
    """Cut the last weight by one column."""
    state = load_file(path)
    last = max(name for name in state if name.endswith(".weight") and state[name].ndim == 2)
    state[last] = state[last][:, 1:].contiguous()
    save_file(state, path, {"format": "pt"})


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        open_source(folder, **options)
    message = caught.value.message
    assert caught.value.exit_code == 3
    assert str(folder) in message
    for raw in ("\n", "low_cpu_mem", "ignore_mismatched", "from_pretrained", "http", "torch.Size"):
        assert raw not in message
    return message


def index(**changes: Any) -> Break:
    return lambda folder: edit(folder / "model_index.json", **changes)


def config(part: str, **changes: Any) -> Break:
    return lambda folder: edit(folder / part / "config.json", **changes)


BROKEN: dict[str, tuple[Break, str]] = {
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "lacks the part vae"),
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), "lacks the part transformer"),
    "vae not named": (index(vae=[None, None]), "has no vae"),
    "other pipeline": (index(_class_name="WanPipeline"), "is a WanPipeline"),
    "foreign class": (index(vae=["my_code", "MyVAE"]), "of class MyVAE of my_code"),
    "newer class": (index(vae=["diffusers", "NoVAE"]), "which the diffusers installed here"),
    "other class": (index(vae=["diffusers", "AutoencoderTiny"]), "is of class AutoencoderKL by"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "no scheduler": (
        lambda f: (f / "scheduler/scheduler_config.json").unlink(),
        "scheduler/scheduler_config.json is missing",
    ),
    "no JSON": (lambda f: (f / "vae/config.json").write_text("{"), "vae/config.json cannot be"),
    "no weights": (lambda f: (f / TRANSFORMER).unlink(), "transformer holds no weights"),
    "cut weights": (lambda f: cut(f / TRANSFORMER), f"{TRANSFORMER} is cut short"),
    "LFS": (
        lambda f: (f / TRANSFORMER).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "wrong shape": (lambda f: narrow(f / TRANSFORMER), "in it and"),
    "lacking tensor": (
        lambda f: rename(f / TRANSFORMER, ("blocks.0.attn", "blocks.0.other")),
        "do not fit",
    ),
    "fewer layers": (config("transformer", num_layers=1), "do not fit"),
    "no layers": (config("transformer", num_layers=None), "do not fit"),
    "no heads": (config("transformer", num_attention_heads=None), "do not fit"),
    "text for a number": (config("transformer", num_layers="two"), "missing or wrong"),
    "no channels": (config("vae", block_out_channels=None), "missing or wrong"),
}


# These have VAEs of other classes, with other fields.
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"qwen-image", "flux2", "krea2"}))
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder(folder: Path, case: str) -> None:
    damage, says = BROKEN[case]
    damage(folder)
    assert says in refusal(folder)


def deepened(folder: Path) -> None:
    """One layer less than there are weights for; CLIP's field, then T5's."""
    fields = ("num_hidden_layers", "num_layers")
    path = folder / "text_encoder" / "config.json"
    there = [field for field in fields if field in json.loads(path.read_text())]
    edit(path, **dict.fromkeys(there, 1))


ENCODERS: dict[str, tuple[Break, str]] = {
    "no encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "lacks the part text_encoder"),
    "not named": (index(text_encoder=[None, None]), "has no text_encoder"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "lacks the part tokenizer"),
    "no vocabulary": (
        lambda f: (f / "tokenizer/tokenizer.json").unlink(),
        "tokenizer holds no vocabulary",
    ),
    "broken vocabulary": (
        lambda f: (f / "tokenizer/tokenizer.json").write_text("{"),
        "tokenizer cannot be loaded",
    ),
    "cut weights": (lambda f: cut(f / "text_encoder/model.safetensors"), "is cut short"),
    "wrong shape": (lambda f: narrow(f / "text_encoder/model.safetensors"), "in it and"),
    "fewer layers": (deepened, "which the model does not have"),
    "no width": (config("text_encoder", hidden_size=None, d_model=None), "in it and"),
    "no norms": (
        lambda f: rename(f / "text_encoder/model.safetensors", ("layer_norm", "other")),
        "it lacks",
    ),
}


@pytest.mark.parametrize("family", ["sd3", "flux", "pixart-sigma"])
@pytest.mark.parametrize("case", ENCODERS)
def test_a_broken_text_encoder(folder: Path, case: str) -> None:
    damage, says = ENCODERS[case]
    damage(folder)
    assert says in refusal(folder)


@pytest.mark.parametrize("family", ["sd3"])
def test_a_tokenizer_of_another_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer_3")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_3")
    edit(folder / "model_index.json", tokenizer_3=["transformers", "CLIPTokenizer"])
    assert "they are not of the same pipeline" in refusal(folder)


@pytest.mark.parametrize("family", ["dit", "pixart-sigma"])
def test_the_class_that_older_folders_name(folder: Path, family: str) -> None:
    edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edit(folder / "transformer" / "config.json", _class_name="Transformer2DModel")
    found = open_source(folder).adapter.transformer
    assert_same(found, FAMILIES[family]().transformer)


@pytest.mark.parametrize("family", ["dit"])
def test_the_names_of_older_autoencoders(folder: Path) -> None:
    names = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
    pairs = [(f"attentions.0.{new}", f"attentions.0.{old}") for new, old in names]
    rename(folder / "vae" / "diffusion_pytorch_model.safetensors", *pairs)
    assert_same(open_source(folder).adapter.pipeline.vae, FAMILIES["dit"]().vae)


@pytest.mark.parametrize("family", ["flux"])
def test_a_guidance_that_the_configuration_forgets(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", guidance_embeds=None)
    assert "it has time_text_embed.guidance_embedder" in refusal(folder)


@pytest.mark.parametrize("family", ["sd3"])
def test_shards(folder: Path) -> None:
    (folder / TRANSFORMER).unlink()
    transformer = FAMILIES["sd3"]().transformer
    transformer.save_pretrained(folder / "transformer", max_shard_size="500KB")
    shards = sorted((folder / "transformer").glob("*-of-*"))
    assert len(shards) > 1
    assert_same(open_source(folder).adapter.transformer, transformer)
    shards[1].unlink()
    assert f"{shards[1]}, one of {len(shards)}, is missing" in refusal(folder)


@pytest.mark.reported("huggingface/diffusers#8902")
@pytest.mark.parametrize("family", ["sd3"])
@pytest.mark.parametrize("part", ["transformer", "text_encoder_3"])
@pytest.mark.parametrize("late_index", [True, False])
def test_shards_whose_variant_follows_the_number(folder: Path, part: str, late_index: bool) -> None:
    """Shards with the names that older versions of diffusers gave to a variant are read."""
    network = getattr(FAMILIES["sd3"](), part).half()
    shutil.rmtree(folder / part)
    network.save_pretrained(folder / part, variant="fp16", max_shard_size="20KB")
    shards = sorted((folder / part).glob("*-of-*"))
    assert len(shards) > 1
    names = {
        path.name: re.sub(r"(.*)\.fp16(-.*-of-\d+)", r"\1\2.fp16", path.name) for path in shards
    }
    for path in shards:
        path.rename(path.with_name(names[path.name]))
    (index,) = (folder / part).glob("*.index.fp16.json")
    stored = json.loads(index.read_text())
    stored["weight_map"] = {k: names[v] for k, v in stored["weight_map"].items()}
    index.unlink()
    late = index.name.replace(".index.fp16.", ".fp16.index.")
    index.with_name(late if late_index else index.name).write_text(json.dumps(stored))
    moved = folder.rename(folder.with_name("models--of.a.cache"))
    assert_same(getattr(open_source(moved).adapter.pipeline, part), network.float())


@pytest.mark.parametrize("family", ["sd3"])
@pytest.mark.parametrize(
    ("dtype", "there", "read"),
    [
        (torch.float32, ["", ".fp16"], ""),
        (torch.float16, ["", ".fp16"], ".fp16"),
        (torch.bfloat16, ["", ".fp16"], ""),
        (torch.float32, [".fp16"], ".fp16"),
    ],
)
def test_variants(folder: Path, dtype: torch.dtype, there: list[str], read: str) -> None:
    """Which of several weight files is read: each has its own bias of the last norm."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    path.unlink()
    for value, variant in enumerate(there):
        state["decoder.conv_norm_out.bias"].fill_(value)
        name = f"diffusion_pytorch_model{variant}.safetensors"
        save_file(state, path.with_name(name), {"format": "pt"})
    vae = load_part(Part(folder, "vae", type(FAMILIES["sd3"]().vae)), dtype)
    assert vae.decoder.conv_norm_out.bias.unique().tolist() == [there.index(read)]


@pytest.mark.parametrize("family", ["sd3"])
def test_a_folder_without_t5(folder: Path) -> None:
    edit(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    shutil.rmtree(folder / "text_encoder_3")
    source = open_source(folder)
    assert source.adapter.pipeline.text_encoder_3 is None
    assert (source.name, source.settings, source.license) == ("model", None, None)


def test_what_is_not_a_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "is not a diffusers pipeline" in refusal(tmp_path / "empty")
    (tmp_path / "file").touch()
    assert "is neither a folder nor a .safetensors or .gguf file" in refusal(tmp_path / "file")
