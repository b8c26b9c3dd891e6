"""Models by name: the real client of the Hub against a small Hub of our own."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants, snapshot_download

from intaglio_export.errors import ExportError
from intaglio_export.sources import hub as hub_module
from intaglio_export.sources import open_source
from tests.export.hub_server import COMMIT, Hub, serve
from tests.export.sources import FAMILIES, assert_same, edit

NAME = "tiny/sd3"
CARD = "---\nlicense: other\nlicense_name: tiny-license\n---\nA model.\n"


@pytest.fixture
def hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """SD3 with all that a published repository has beside its parts, and an empty cache."""
    root = tmp_path / "repository"
    shutil.copytree(folders["sd3"], root)
    (root / "README.md").write_text(CARD)
    (root / "settings.json").write_text('{"block": 2}')
    for extra in (
        "sd3.safetensors",
        "text_encoders/clip_g.safetensors",
        "transformer/diffusion_pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
        "text_encoder/model.onnx",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "image.png",
    ):
        (root / extra).parent.mkdir(exist_ok=True)
        (root / extra).write_bytes(b"not to be downloaded")
    monkeypatch.chdir(tmp_path)
    with serve() as hub:
        hub.repositories[NAME] = root
        point_at(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What the environment variable HF_ENDPOINT does, which is read at import."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refusal(name: str = NAME, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        open_source(name, **options)
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("name", [NAME, f"{NAME}@main", f"{NAME}@{COMMIT}"])
def test_a_model_of_the_hub(hub: Hub, name: str) -> None:
    reported: list[str] = []
    source = open_source(name, report=reported.append)
    pipeline = FAMILIES["sd3"]()
    for part in ("transformer", "vae", "text_encoder", "text_encoder_3"):
        assert_same(getattr(source.adapter.pipeline, part), getattr(pipeline, part))
    assert (source.name, source.license) == (name, "tiny-license")
    assert source.settings is not None
    assert source.settings.read_text() == '{"block": 2}'
    assert reported[0] == f"Looking for {name}"
    assert reported[-1].startswith(f"Downloading {name} (0.0 of 0.0 GB)")


def test_only_what_is_needed_is_downloaded(hub: Hub) -> None:
    open_source(NAME, text_encoders="no-t5")
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2")
    weights = {f for f in hub.fetched if f.endswith((".safetensors", ".bin", ".onnx", ".msgpack"))}
    assert weights == {
        f"{part}/{'model' if 'text' in part else 'diffusion_pytorch_model'}.safetensors"
        for part in parts
    }
    assert not [f for f in hub.fetched if f.startswith(("text_encoder_3", "tokenizer_3", "image"))]
    before = len(hub.fetched)
    open_source(NAME, text_encoders="no-t5")
    assert len(hub.fetched) == before


def test_a_quantised_model_is_not_downloaded(hub: Hub) -> None:
    method = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    edit(hub.repositories[NAME] / "text_encoder_3" / "config.json", quantization_config=method)
    assert "text_encoder_3" in refusal()
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]


def test_the_variant_of_the_precision(hub: Hub) -> None:
    pipeline = FAMILIES["sd3"]().to(torch.float16)
    for part in ("transformer", "text_encoder_3"):
        getattr(pipeline, part).save_pretrained(
            hub.repositories[NAME] / part, variant="fp16", max_shard_size="100KB"
        )
    source = open_source(NAME, torch.float16)
    large = {
        f for f in hub.fetched if "safetensors" in f and f.startswith(("transf", "text_encoder_3"))
    }
    assert all("fp16" in f for f in large)
    assert any("-of-" in f for f in large)
    weight = pipeline.transformer.proj_out.weight
    torch.testing.assert_close(source.adapter.transformer.proj_out.weight, weight, rtol=0, atol=0)


def test_a_component_that_has_pickled_weights_only(hub: Hub, folders: dict[str, Path]) -> None:
    shutil.copytree(folders["dit"], hub.repositories[NAME].parent / "dit")
    hub.repositories["tiny/dit"] = hub.repositories[NAME].parent / "dit"
    pipeline = FAMILIES["dit"]()
    for part in ("transformer", "vae"):
        folder = hub.repositories["tiny/dit"] / part
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        getattr(pipeline, part).save_pretrained(folder, safe_serialization=False)
    adapter = open_source("tiny/dit").adapter
    assert_same(adapter.transformer, pipeline.transformer)


def test_a_folder_of_that_name_wins(hub: Hub, folders: dict[str, Path]) -> None:
    shutil.copytree(folders["dit"], NAME)
    assert open_source(NAME).adapter.family == "dit"
    assert hub.fetched == []


def test_a_single_file_completed_by_the_hub(hub: Hub, folders: dict[str, Path]) -> None:
    file = folders["sd3"] / "transformer" / "diffusion_pytorch_model.safetensors"
    source = open_source(file, config=NAME)
    assert source.name == "diffusion_pytorch_model"
    assert "transformer/config.json" in hub.fetched
    assert "transformer/diffusion_pytorch_model.safetensors" not in hub.fetched


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model(hub: Hub, status: int) -> None:
    hub.gated[NAME] = status
    message = refusal()
    assert f"accept its licence on {hub.url}/{NAME}" in message
    assert "`hf auth login`" in message


def test_what_the_hub_does_not_have(hub: Hub) -> None:
    assert "no folder tiny/other here and no model tiny/other on the Hub" in refusal("tiny/other")
    assert "has no revision v9" in refusal(f"{NAME}@v9")
    (hub.repositories[NAME] / "model_index.json").unlink()
    assert "is not a diffusers pipeline: it has no model_index.json" in refusal()
    for name in ("tiny", "./tiny/sd3", "a/b/c", "/tmp/none"):
        assert f"does not exist, and {name} is not a Hub name" in refusal(name)
    assert "neither a folder nor a valid Hub name" in refusal("tiny/a..b")


def test_an_unknown_pipeline_is_refused_before_its_weights(hub: Hub) -> None:
    index = hub.repositories[NAME] / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusion3Pipeline", "WanPipeline"))
    assert "is a WanPipeline, which this version cannot export" in refusal()
    assert not [f for f in hub.fetched if "safetensors" in f]


@pytest.mark.reported("huggingface/huggingface_hub#2844", "ostris/ai-toolkit#36")
@pytest.mark.parametrize(
    ("status", "says", "advice"),
    [
        (401, "Invalid credentials in Authorization header", "log in again with `hf auth login`"),
        (
            403,
            "Please enable access to public gated repositories in your fine-grained token settings"
            " to view this repository.",
            "change the token on {url}/settings/tokens",
        ),
        (429, "Too many requests", "wait some minutes"),
        (503, "", "try again later"),
    ],
)
def test_a_hub_that_refuses(hub: Hub, status: int, says: str, advice: str) -> None:
    """A message quotes the Hub's own error and says what helps with that status."""
    hub.status, hub.says = status, says
    message = refusal()
    assert f"answered with the error {status}" in message
    assert says.rstrip(".") in message
    assert advice.format(url=hub.url) in message
    assert ("try again" in message) == (status == 503)


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, "http://127.0.0.1:9")  # nobody listens
    assert "The Hub (http://127.0.0.1:9) cannot be reached to download tiny/sd3" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in refusal()


def test_no_network_and_a_cached_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    open_source(NAME, text_encoders="no-t5")
    point_at(monkeypatch, "http://127.0.0.1:9")
    open_source(NAME, text_encoders="no-t5")
    assert "cannot be reached" in refusal()  # T5 was not downloaded


@pytest.mark.reported(
    "huggingface/optimum-intel#1855", "huggingface/optimum-intel#1905", "huggingface/optimum#2470"
)
@pytest.mark.parametrize("filled_by", ["an older client", "diffusers"])
@pytest.mark.parametrize("offline", [False, True])
def test_no_network_and_a_cache_that_others_filled(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, filled_by: str, offline: bool
) -> None:
    """A model that is whole in the cache opens without the network, whether an older client, which
    kept no listing, or diffusers, which asks for no README.md, put it there."""
    patterns = ["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt"]
    snapshot = Path(snapshot_download(NAME, allow_patterns=patterns))
    if filled_by == "an older client":
        shutil.rmtree(snapshot.parents[1] / "trees")
    point_at(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    assert DiffusionPipeline.from_pretrained(NAME, local_files_only=True)
    opened = open_source(NAME)
    assert opened.license is None
    assert_same(opened.adapter.transformer, FAMILIES["sd3"]().transformer)
    says = "HF_HUB_OFFLINE forbids" if offline else "cannot be reached"
    for file in ("text_encoder_3/model.safetensors", "transformer/config.json"):
        (snapshot / file).unlink()
        assert says in refusal()


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub_module, "snapshot_download", full)
    message = refusal()
    assert f"The disk of the Hub's cache {constants.HF_HUB_CACHE} is full" in message
