"""Read and write `engine.json`, which describes the engines of a folder.

Its schema is models/engine.schema.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from intaglio_export import __version__
from intaglio_export.engines.bundle import Component
from intaglio_export.engines.key import EngineSettings
from intaglio_export.engines.log import layer_types
from intaglio_export.engines.worker import Built
from intaglio_export.support import resources

NAME = "engine.json"
SCHEMA_VERSION = 1


def read(folder: Path) -> dict[str, Any]:
    """Read the components of the engine.json in `folder`, empty if there is no valid file."""
    try:
        document = json.loads((folder / NAME).read_text(encoding="utf-8"))
        jsonschema.validate(document, resources.engine_schema())
    except (OSError, ValueError, jsonschema.ValidationError):
        return {}  # all engines are built again
    found: dict[str, Any] = document["components"]
    return found


def plan_name(component: Component, key: str) -> str:
    """Return the file name of the engine with this key.

    Engines with other keys have other names, so an entry never refers to a plan built later.
    """
    return f"{component.name}-{key[:8]}.plan"


def entry(
    key: str, component: Component, manifest: dict[str, Any], built: Built, estimates: list[int]
) -> dict[str, Any]:
    """Return the entry of one engine.

    `estimates` of the memory of activations stand where the builder's log does not state it.
    """
    log = built.log
    graph, *weights = component.files
    files = manifest["files"]
    bindings = {binding.name: binding.to_json() for binding in built.bindings}
    stated = len(log.activation_bytes) == len(estimates)
    return {
        "key": key,
        "plan": plan_name(component, key),
        "plan_bytes": built.plan_bytes,
        "plan_sha256": built.plan_sha256,
        "graph_sha256": files[graph]["sha256"],
        "weights_sha256": {path: files[path]["sha256"] for path in weights},
        "inputs": [bindings[tensor["name"]] for tensor in component.inputs],
        "outputs": [bindings[tensor["name"]] for tensor in component.outputs],
        "weights_bytes": log.weights_bytes or component.weights_bytes,
        "activation_bytes": list(log.activation_bytes) if stated else estimates,
        "layers": len(log.layers),
        "layer_types": layer_types(log.layers),
    }


def write(folder: Path, settings: EngineSettings, entries: dict[str, Any]) -> None:
    """Replace the engine.json of `folder` in one step.

    Raises:
        jsonschema.ValidationError: it does not fit the schema; this is a bug of the builder.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "backend": settings.backend,
        "version": settings.version,
        "targets": list(settings.targets),
        "precision": settings.precision,
        "flags": list(settings.flags),
        "key": settings.key,
        "profiles": [profile.to_json() for profile in settings.profiles],
        "producer": {"intaglio": __version__},
        "components": entries,
    }
    jsonschema.validate(document, resources.engine_schema())
    unfinished = folder / f"{NAME}.partial"
    unfinished.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / NAME)
