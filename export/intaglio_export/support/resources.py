"""Read the exporter's own files: the schemas of what it writes, and recipes of known models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]


def _root() -> Path:
    """Return `data/` of the installed package, or `models/` of a source checkout."""
    installed = _PACKAGE / "data"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "models"


def bundle_schema() -> dict[str, Any]:
    """Return the JSON schema of `bundle.json`."""
    return _schema("bundle")


def engine_schema() -> dict[str, Any]:
    """Return the JSON schema of `engine.json`."""
    return _schema("engine")


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((_root() / f"{name}.schema.json").read_text("utf-8"))
    return schema


def recipes() -> list[dict[str, Any]]:
    """Return all recipes in the order of their file names."""
    return [json.loads(p.read_text("utf-8")) for p in sorted((_root() / "recipes").glob("*.json"))]
