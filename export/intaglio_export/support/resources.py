"""Files that belong to the exporter: schemas of what it writes, and the recipes of known models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]


def _root() -> Path:
    """`data/` of the installed package, or `models/` of a source checkout."""
    installed = _PACKAGE / "data"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "models"


def bundle_schema() -> dict[str, Any]:
    """The JSON schema of `bundle.json`."""
    return _schema("bundle")


def engine_schema() -> dict[str, Any]:
    """The JSON schema of `engine.json`."""
    return _schema("engine")


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((_root() / f"{name}.schema.json").read_text("utf-8"))
    return schema


def recipes() -> list[dict[str, Any]]:
    """All recipes, in the order of their file names."""
    return [json.loads(p.read_text("utf-8")) for p in sorted((_root() / "recipes").glob("*.json"))]
