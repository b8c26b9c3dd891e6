"""Opens the folder to export: finds its adapter and loads it, or says what is wrong with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from torch import nn

from intaglio_export.adapters import ADAPTERS, Adapter, adapter_for
from intaglio_export.errors import ExportError, usage_error
from intaglio_export.precision import narrow
from intaglio_export.quiet import no_progress_bars, quiet
from intaglio_export.tokenizer import sentencepiece_problem

INDEX = "model_index.json"
SETTINGS = "settings.json"
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def open_source(
    folder: Path, dtype: torch.dtype = torch.float32, text_encoders: str = "all"
) -> Adapter:
    """Load the diffusers pipeline in `folder` with the adapter of its class.

    Weights of matrix products are held in `dtype`, but for the VAE's, which are in float32.
    `text_encoders` is one of `options.TEXT_ENCODERS`.

    Raises:
        ExportError: the folder is missing, is not a diffusers pipeline, is of an unknown class, or
            one of its parts cannot be read.
    """
    if not folder.is_dir():
        raise ExportError(f"The source folder {folder} does not exist.")
    index = _index(folder)
    adapter = adapter_for(index["_class_name"])
    if adapter is None:
        known = ", ".join(name for a in ADAPTERS for name in a.pipeline_classes)
        raise ExportError(
            f"The source {folder} is a {index['_class_name']}, which this version cannot export;"
            f" it knows {known}."
        )
    absent = _absent(index)
    if text_encoders == "no-t5":
        if not adapter.optional_encoders:
            raise usage_error(
                f"--text-encoders no-t5: {adapter.family} models cannot do without their encoders."
            )
        absent |= {
            name
            for encoder in adapter.optional_encoders
            for name in (encoder, encoder.replace("text_encoder", "tokenizer"))
        }
    with quiet(), no_progress_bars():
        try:
            pipeline = _load(folder, index["_class_name"], dtype, absent)
        except MemoryError:
            raise
        except Exception as error:  # diffusers, transformers and safetensors raise what they like
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            sentence = f"The source {folder} cannot be loaded: {reason}"
            raise ExportError(sentencepiece_problem(folder) or sentence) from error
    for name in ("transformer", *adapter.text_encoders):
        if (network := getattr(pipeline, name, None)) is not None:
            narrow(network, dtype)
    return adapter(pipeline, dtype)


def _load(folder: Path, name: str, dtype: torch.dtype, absent: set[str]) -> Any:
    """The diffusers pipeline, frozen, its weights mapped: they are read when they are used."""
    # As stored, for diffusers would hold both types of a file at once; `narrow` converts.
    stored = {path.name: _stored(path) for path in folder.iterdir() if path.is_dir()}
    dtypes = {name: known for name, known in stored.items() if known}
    pipeline = getattr(diffusers, name).from_pretrained(
        str(folder),
        dtype=dtypes | {"default": dtype, "vae": torch.float32},
        local_files_only=True,
        **dict.fromkeys(absent),
    )
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


def _stored(network: Path) -> torch.dtype | None:
    """The type of the weights in a network's folder, if they are .safetensors of a known type."""
    for path in network.glob("*.safetensors"):
        if path.suffixes != [".safetensors"]:
            continue  # a variant, like model.fp16.safetensors
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it has no other way to be iterated)
                if dtype := _STORED.get(file.get_slice(name).get_dtype()):
                    return dtype
    return None


def _absent(index: dict[str, Any]) -> set[str]:
    """Parts that the index names as null; diffusers wants to hear of each."""
    return {name for name, part in index.items() if part == [None, None]}


def _index(folder: Path) -> dict[str, Any]:
    """The pipeline's parts, and its class by `_class_name`."""
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


def license_of(folder: Path) -> str | None:
    """The licence that the front matter of the folder's README.md names, or None."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    lines = front[1] if front else ""
    found = dict(re.findall(r"^(license|license_name):\s*['\"]?([^'\"\n]+)", lines, re.M))
    name = found.get("license_name") if found.get("license") == "other" else None
    return (name or found.get("license") or "").strip() or None
