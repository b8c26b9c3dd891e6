"""The commands of docs/models.md, on small models whose repositories look like those of the Hub."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

import intaglio
from intaglio.__main__ import GROUP, run_python
from intaglio_export.sources import open_source
from tests.byte_level import CHATML
from tests.export.hub_server import Hub, serve
from tests.export.sources import edit
from tests.export.test_hub import point_at
from tests.families import chroma, flux2, krea2, qwen_image, z_image

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
COMMAND = EntryPoint("export", "intaglio_export.cli:export", GROUP)


@dataclass(frozen=True)
class Published:
    """A small pipeline, and what its repository is like.

    `tokenizer` is the class in the index, of a tokenizer of Qwen's. `head`: the text encoder was
    saved with its head, though the index names the class without it. `variant` is in the names of
    files in bfloat16, beside which there are others in float32.
    """

    make: Callable[[], Any]
    tokenizer: str | None = None
    head: bool = False
    variant: str | None = None


SHARDED = ("transformer", "text_encoder")
REPOSITORIES = {
    "Tongyi-MAI/Z-Image-Turbo": Published(
        lambda: z_image.make_pipeline(shift=3.0), "Qwen2Tokenizer", head=True
    ),
    "black-forest-labs/FLUX.2-klein-4B": Published(
        flux2.make_distilled, "Qwen2TokenizerFast", variant="bf16"
    ),
    "Qwen/Qwen-Image": Published(qwen_image.make_pipeline, "Qwen2Tokenizer"),
    "krea/Krea-2-Raw": Published(krea2.make_base, "Qwen2Tokenizer"),
    "lodestones/Chroma1-HD": Published(chroma.make_pipeline, variant="bf16"),
}


def publish(name: str, root: Path) -> Any:
    """Write the repository of `name` to `root`, and return its pipeline, whose VAE is float32."""
    published = REPOSITORIES[name]
    pipeline = published.make()
    pipeline.save_pretrained(root)
    if published.tokenizer is not None:
        write_tokenizer(root / "tokenizer", pipeline.tokenizer)
        edit(root / "model_index.json", tokenizer=["transformers", published.tokenizer])
    for part in SHARDED:
        network = getattr(pipeline, part).to(torch.bfloat16)
        if part == "text_encoder" and published.head:
            whole = Qwen3ForCausalLM(network.config).to(torch.bfloat16)
            whole.model.load_state_dict(network.state_dict())
            network = whole
        if published.variant is None:
            for file in (root / part).glob("*.safetensors"):
                file.unlink()
        largest = max(parameter.nbytes for parameter in network.parameters())
        network.save_pretrained(
            root / part, variant=published.variant, max_shard_size=f"{largest // 1000 + 1}KB"
        )
    return pipeline


def write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """As Qwen's: vocabulary and merges also in files of their own, and the chat template in the
    configuration."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[tuple(merge) for merge in merges])
    special = [token["content"] for token in state["added_tokens"] if token["special"]]
    made.add_special_tokens({"additional_special_tokens": special})
    shutil.rmtree(folder)
    made.save_pretrained(folder)
    edit(folder / "tokenizer_config.json", chat_template=CHATML)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub without repositories, an empty cache, and an empty folder to work in."""
    with serve() as hub:
        point_at(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield hub


def arguments(name: str) -> list[str]:
    """What follows `intaglio export` in the command of docs/models.md for that model."""
    page = PAGE.read_text(encoding="utf-8")
    (found,) = re.findall(rf"^intaglio export ({re.escape(name)} .*)$", page, re.M)
    return shlex.split(found)


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_repository_is_read(name: str, hub: Hub, tmp_path: Path) -> None:
    pipeline = publish(name, tmp_path / "repository")
    hub.repositories[name] = tmp_path / "repository"
    assert "--dtype bfloat16" in " ".join(arguments(name))
    loaded = open_source(name, torch.bfloat16).adapter.pipeline
    for part in ("transformer", "text_encoder", "vae"):
        ours, theirs = (getattr(p, part).state_dict() for p in (loaded, pipeline))
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.equal(ours[key].to(tensor.dtype), tensor), key
    fetched = [f for f in hub.fetched if f.startswith(SHARDED) and f.endswith(".safetensors")]
    assert {file.split("/")[0] for file in fetched} == set(SHARDED)
    assert len(fetched) > 4
    assert all("-of-" in f and (REPOSITORIES[name].variant or "") in f for f in fetched)
    assert loaded.tokenizer("a dark boot").input_ids == pipeline.tokenizer("a dark boot").input_ids


@pytest.mark.exports
def test_the_command_exports_it(hub: Hub, tmp_path: Path) -> None:
    """Prompts are short and images small, because the small networks know few positions."""
    name = "Tongyi-MAI/Z-Image-Turbo"
    publish(name, tmp_path / "repository")
    hub.repositories[name] = tmp_path / "repository"
    settings = {"max_sequence_length": 40, "height": 32, "width": 40}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "bundles").mkdir()
    given = arguments(name)
    assert run_python(COMMAND, [*given, "--settings", "settings.json"]) == 0
    bundle = tmp_path / given[given.index("-o") + 1]
    assert json.loads((bundle / "bundle.json").read_text())["distilled"] is True
    pipeline = intaglio.Pipeline.open(bundle, threads=1)
    assert pipeline.bundle.source == name
    run = pipeline.generate("a red fox", dg_scale=0.5)
    assert run.images[0].size == (40, 32)
