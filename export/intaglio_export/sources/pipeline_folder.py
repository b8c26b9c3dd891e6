"""Read a diffusers pipeline from a folder: its model_index.json and its parts."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn
from transformers.tokenization_utils_base import LARGE_INTEGER

from intaglio_export.adapters import ADAPTERS, Adapter, adapter_for
from intaglio_export.errors import ExportError, usage_error
from intaglio_export.sources.filling import load_packed
from intaglio_export.sources.parts import (
    Part,
    check_class,
    check_unquantised,
    held_in,
    load_part,
    part_class,
)

INDEX = "model_index.json"
SETTINGS = "settings.json"
CARD = "README.md"


@dataclass(frozen=True)
class PipelineFolder:
    """A folder whose index was read, with the adapter of its class and the exported parts.

    The parts in `optional` are left out if their folders do not exist.
    """

    path: Path
    adapter: type[Adapter]
    index: dict[str, Any]
    parts: dict[str, Part]
    optional: frozenset[str] = frozenset()

    @property
    def pipeline_class(self) -> Any:
        """The diffusers class."""
        return getattr(diffusers, self.index["_class_name"])


def open_folder(path: Path, text_encoders: str = "all") -> PipelineFolder:
    """Read the index of a pipeline's folder. No other file has to exist yet.

    `text_encoders` is a value of `options.TextEncoders`.

    Raises:
        ExportError: the folder is not a diffusers pipeline, its class is unknown, or its index
            lacks a part that the export needs.
    """
    index = _read_index(path)
    adapter = adapter_for(index["_class_name"])
    if adapter is None:
        known = ", ".join(name for a in ADAPTERS for name in a.pipeline_classes)
        raise ExportError(
            f"The source {path} is a {index['_class_name']}, which this version cannot export;"
            f" it knows {known}."
        )
    optional = _with_tokenizers(adapter.optional_encoders)
    if text_encoders == "no-t5":
        if not optional:
            raise usage_error(
                f"--text-encoders no-t5: {adapter.family} models need their text encoders;"
                " leave the option out."
            )
        index |= dict.fromkeys(optional)
    texts = _with_tokenizers(adapter.text_encoders)
    spared = frozenset(texts if text_encoders == "none" else ())
    parts = {}
    for name in ("transformer", "vae", "scheduler", *texts):
        entry = index.get(name)
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(x, str) for x in entry):
            parts[name] = Part(path, name, part_class(path, name, entry))
        elif name not in spared and not (
            name in optional and all(_is_null(index.get(other)) for other in optional)
        ):
            raise ExportError(
                f"The source {path} has no {name}: its {INDEX} does not name one, and a"
                f" {index['_class_name']} needs it; give a complete pipeline"
                + (
                    ", or leave out its text encoders with --text-encoders none."
                    if name in texts
                    else "."
                )
            )
    return PipelineFolder(path, adapter, index, parts, spared)


def load_pipeline(folder: PipelineFolder, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    """Load the diffusers pipeline, except the parts in `given`, which are used as they are.

    Raises:
        ExportError: a part cannot be loaded, or has a class that the pipeline does not accept.
    """
    parts = dict(given)
    wanted = _present(folder, given)
    for name, part in wanted.items():
        if part.is_network and name not in parts:
            check_unquantised(part)
    for name, part in wanted.items():
        if name not in parts:
            held = held_in(name, dtype)
            packed = load_packed(part, held) if part.is_network else None
            parts[name] = load_part(part, held) if packed is None else packed
        if part.is_network:
            check_class(part, parts[name], folder.pipeline_class)
            _check_filled(part, parts[name])
    for name in folder.adapter.text_encoders:
        if name in parts:
            config = parts[name].config.get_text_config()
            _match_tokenizer(folder, name, config, parts[_tokenizer(name)])
    arguments = inspect.signature(folder.pipeline_class).parameters
    absent = {name: None for name, a in arguments.items() if a.default is a.empty}
    flags = {k: v for k, v in folder.index.items() if k in arguments and not _is_part(v)}
    return folder.pipeline_class(**absent | flags | parts)


def _is_part(entry: Any) -> bool:
    """Return whether an entry of the index names a part by library and class, or none by nulls."""
    if not isinstance(entry, list):
        return entry is None
    return all(isinstance(name, str | None) for name in entry)


def _present(folder: PipelineFolder, given: dict[str, Any]) -> dict[str, Part]:
    """Return the parts without optional ones that are not there: an encoder needs its tokenizer."""
    there = {
        name
        for name, part in folder.parts.items()
        if name in given or name not in folder.optional or part.path.is_dir()
    }
    lonely = {
        other
        for name in folder.adapter.text_encoders
        for other in (name, _tokenizer(name))
        if not {name, _tokenizer(name)} <= there
    }
    return {name: folder.parts[name] for name in folder.parts if name in there - lonely}


def _check_filled(part: Part, network: nn.Module) -> None:
    """Check that a network has a value for each of its tensors."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    if empty := sorted(name for name, tensor in tensors if tensor.is_meta):
        raise ExportError(
            f"The part {part.name} of {part.folder} was loaded without a value for {empty[0]};"
            " its weights and its config.json are not of one model."
        )


def _match_tokenizer(folder: PipelineFolder, name: str, encoder: Any, tokenizer: Any) -> None:
    """Check that the encoder knows every token, and as many tokens at once as the tokenizer makes.

    A tokenizer without a limit gets that of the encoder.
    """
    if len(tokenizer) > (rows := encoder.vocab_size):
        raise ExportError(
            f"The source {folder.path} has a {_tokenizer(name)} with {len(tokenizer)} tokens"
            f" and a {name} that knows {rows}: they are not of the same pipeline; give a"
            " complete pipeline."
        )
    if not isinstance(limit := tokenizer.model_max_length, int | float):
        raise ExportError(
            f"The {_tokenizer(name)} of {folder.path} has the model_max_length {limit!r}, which is"
            " not a number; correct its tokenizer_config.json."
        )
    positions = getattr(encoder, "max_position_embeddings", None)
    if positions is not None and limit > LARGE_INTEGER:
        tokenizer.model_max_length = positions


def freeze(pipeline: Any) -> None:
    """Put every network of the pipeline into eval mode without gradients."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)


def license_of(folder: Path) -> str | None:
    """Return the licence in the front matter of the folder's README.md, or None."""
    card = folder / CARD
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    lines = front[1] if front else ""
    found = dict(re.findall(r"^(license|license_name):\s*['\"]?([^'\"\n]+)", lines, re.M))
    name = found.get("license_name") if found.get("license") == "other" else None
    return (name or found.get("license") or "").strip() or None


def _with_tokenizers(encoders: tuple[str, ...]) -> list[str]:
    return [*encoders, *map(_tokenizer, encoders)]


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _is_null(entry: Any) -> bool:
    return entry in (None, [None, None])


def _read_index(folder: Path) -> dict[str, Any]:
    """Read model_index.json, which holds the pipeline's class and its parts."""
    path = folder / INDEX
    if not path.is_file():
        raise ExportError(
            f"The source {folder} is not a diffusers pipeline: it has no {INDEX}."
            " Give the folder that save_pretrained or a download wrote."
        )
    try:
        index: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"The file {path} cannot be read: {error}.") from error
    name = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(name, str):
        raise ExportError(f"The file {path} does not name a pipeline class (_class_name).")
    known: dict[str, Any] = index
    return known
