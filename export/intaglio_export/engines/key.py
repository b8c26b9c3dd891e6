"""Keys of engines. An engine is reused if its key is the same.

A key is the first digits of a SHA-256 over JSON with sorted keys and without spaces.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intaglio_export.engines.bundle import Component
from intaglio_export.engines.profiles import Profile, input_shapes

# Raise this number when the same settings give other engines.
BUILDER_REVISION = 2


@dataclass(frozen=True)
class EngineSettings:
    """The settings that all engines of one folder share."""

    backend: str
    version: str
    targets: tuple[str, ...]
    precision: str
    profiles: tuple[Profile, ...]
    flags: tuple[str, ...]

    @property
    def key(self) -> str:
        """8 hexadecimal digits of the settings."""
        return _digest(asdict(self))[:8]

    def folder(self, bundle: Path) -> Path:
        """Return the folder of these settings' engines in a bundle."""
        targets = "+".join(self.targets)
        return bundle / "engines" / f"{self.backend}-{targets}-{self.precision}-{self.key}"


def component_key(settings: EngineSettings, component: Component, manifest: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits for an engine.

    They depend on the settings, the graph, its weights files, the shapes of every profile, and the
    image stream that is checked.
    """
    digests = {path: manifest["files"][path]["sha256"] for path in component.files}
    shapes = [input_shapes(component, profile, manifest) for profile in settings.profiles]
    stream = [manifest["transformer"][name] for name in ("blocks", "channels")]
    return _digest(
        {
            "folder": settings.key,
            "revision": BUILDER_REVISION,
            "files": digests,
            "shapes": shapes,
            "stream": stream if component.is_transformer else [],
        }
    )[:16]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
