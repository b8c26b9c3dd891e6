"""Opens the folder to export: finds its adapter and loads it, or says what is wrong with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from intaglio_export.adapters import ADAPTERS, Adapter, adapter_for
from intaglio_export.errors import ExportError
from intaglio_export.quiet import no_progress_bars, quiet
from intaglio_export.tokenizer import sentencepiece_problem

INDEX = "model_index.json"
SETTINGS = "settings.json"


def open_source(folder: Path) -> Adapter:
    """Load the diffusers pipeline in `folder` with the adapter of its class.

    Raises:
        ExportError: the folder is missing, is not a diffusers pipeline, is of an unknown class, or
            one of its parts cannot be read.
    """
    if not folder.is_dir():
        raise ExportError(f"The source folder {folder} does not exist.")
    adapter = adapter_for(_pipeline_class(folder))
    if adapter is None:
        known = ", ".join(name for a in ADAPTERS for name in a.pipeline_classes)
        raise ExportError(
            f"The source {folder} is a {_pipeline_class(folder)}, which this version cannot export;"
            f" it knows {known}."
        )
    with quiet(), no_progress_bars():
        try:
            return adapter.load(str(folder))
        except MemoryError:
            raise
        except Exception as error:  # diffusers, transformers and safetensors raise what they like
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            sentence = f"The source {folder} cannot be loaded: {reason}"
            raise ExportError(sentencepiece_problem(folder) or sentence) from error


def _pipeline_class(folder: Path) -> str:
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
    return name


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
