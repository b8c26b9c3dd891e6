"""Find the recipe of a published model by the configuration of its transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intaglio_export.options import ModelSettings
from intaglio_export.support import resources


@dataclass(frozen=True)
class Recipe:
    """A known model: its name, its settings, and a sentence about their source."""

    name: str
    settings: ModelSettings
    source: str


def find_recipe(
    family: str, config: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> Recipe | None:
    """Return the recipe that matches the configurations of transformer and scheduler, or None.

    Published models of one family differ in depth, width or attention, so their configuration
    identifies them, whatever the folder is called.
    """
    for data in resources.recipes():
        if data["family"] != family:
            continue
        if _agrees(data["match"], config) and _agrees(data.get("match_scheduler", {}), scheduler):
            return Recipe(data["name"], ModelSettings(**data["settings"]), data["source"])
    return None


def _agrees(match: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return all(plain(config.get(key)) == value for key, value in match.items())
