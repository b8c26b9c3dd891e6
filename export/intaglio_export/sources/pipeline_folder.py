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

from intaglio_export.adapters import ADAPTERS, Adapter, adapter_for
from intaglio_export.errors import ExportError, usage_error
from intaglio_export.sources.parts import Part, check_class, held_in, load_part, part_class

INDEX = "model_index.json"
SETTINGS = "settings.json"
CARD = "README.md"


@dataclass(frozen=True)
class PipelineFolder:
    """A folder whose index was read, with the adapter of its class and the exported parts."""

    path: Path
    adapter: type[Adapter]
    index: dict[str, Any]
    parts: dict[str, Part]

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
    parts = {}
    for name in ("transformer", "vae", "scheduler", *_with_tokenizers(adapter.text_encoders)):
        entry = index.get(name)
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(x, str) for x in entry):
            parts[name] = Part(path, name, part_class(path, name, entry))
        elif not (name in optional and all(_is_null(index.get(other)) for other in optional)):
            raise ExportError(
                f"The source {path} has no {name}: its {INDEX} does not name one, and a"
                f" {index['_class_name']} needs it; give a complete pipeline."
            )
    return PipelineFolder(path, adapter, index, parts)


def load_pipeline(folder: PipelineFolder, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    """Load the diffusers pipeline, except the parts in `given`, which are used as they are.

    Raises:
        ExportError: a part cannot be loaded, or has a class that the pipeline does not accept.
    """
    parts = dict(given)
    for name, part in folder.parts.items():
        if name not in parts:
            parts[name] = load_part(part, held_in(name, dtype))
        if part.is_network:
            check_class(part, parts[name], folder.pipeline_class)
    _check_vocabularies(folder, parts)
    arguments = inspect.signature(folder.pipeline_class).parameters
    absent = {name: None for name, a in arguments.items() if a.default is a.empty}
    flags = {k: v for k, v in folder.index.items() if k in arguments and not isinstance(v, list)}
    return folder.pipeline_class(**absent | flags | parts)


def _check_vocabularies(folder: PipelineFolder, parts: dict[str, Any]) -> None:
    """Check that every token of a tokenizer has an embedding in its encoder."""
    for name in folder.adapter.text_encoders:
        tokenizer = name.replace("text_encoder", "tokenizer")
        if name in parts and len(parts[tokenizer]) > (rows := parts[name].config.vocab_size):
            raise ExportError(
                f"The source {folder.path} has a {tokenizer} with {len(parts[tokenizer])} tokens"
                f" and a {name} that knows {rows}: they are not of the same pipeline; give a"
                " complete pipeline."
            )


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
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
    return [*encoders, *tokenizers]


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
