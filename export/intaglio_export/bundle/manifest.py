"""Build and write `bundle.json`, the only interface between the exporter and the runtime.

Its schema is models/bundle.schema.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema

from intaglio_export import __version__
from intaglio_export.adapters.base import Adapter, PromptLayout
from intaglio_export.adapters.references import References, ReferencesAdapter
from intaglio_export.adapters.schedulers import scheduler_entry
from intaglio_export.bundle import tokenizer_tables
from intaglio_export.bundle.output_folder import MANIFEST, SCHEMA_VERSION
from intaglio_export.graph_specs import GraphSpec
from intaglio_export.options import Lora, ModelSettings
from intaglio_export.support import resources

_PRODUCERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")


@dataclass(frozen=True)
class Suppression:
    """The block after which channels are suppressed, and which; `ratio` has their order."""

    block: int
    channels: list[int]
    found_by: str
    massive: bool
    ratio: list[float]
    ref: list[float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bundle.schema.json`."""
        data = asdict(self)
        if self.ref is None:
            del data["ref"]
        return data


@dataclass(frozen=True)
class BundleParts:
    """What was exported: the layout, the graphs by name, and the settings that were used.

    `errors` and `differences` are as in `verify.Errors`, the former by path.
    """

    layout: str
    dtype: str
    source: str
    graphs: dict[str, GraphSpec]
    encoders: dict[str, GraphSpec]
    vae_decoder: GraphSpec
    vae_encoder: GraphSpec | None
    suppression: Suppression
    prompt: PromptLayout | None
    max_abs: list[float]
    settings: ModelSettings
    errors: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    loras: tuple[Lora, ...] = ()


def build_manifest(adapter: Adapter, parts: BundleParts, folder: Path) -> dict[str, Any]:
    """Return the manifest of the files in `folder`."""
    name = parts.settings.name or parts.source
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "producer": _producer(),
        "name": name,
        "family": adapter.family,
        "source": parts.source,
        "license": parts.settings.license or "unknown",
        "layout": parts.layout,
        "dtype": parts.dtype,
        "transformer": {
            "graphs": {name: spec.to_json() for name, spec in parts.graphs.items()},
            "blocks": len(adapter.blocks()),
            "patch_size": adapter.patch_size,
            "channels": adapter.channels,
            "max_abs": parts.max_abs,
        },
        "massive_activations": parts.suppression.to_json(),
        "prediction_type": adapter.prediction_type,
        "latent": _without_false(asdict(adapter.latent())),
        "scheduler": scheduler_entry(
            adapter.pipeline.scheduler, adapter.max_shift, adapter.fixed_mu
        ),
        "vae_decoder": parts.vae_decoder.to_json(),
        "defaults": _defaults(adapter, parts.settings),
        "files": _files(folder),
    }
    if isinstance(adapter, ReferencesAdapter):
        manifest["references"] = _references(adapter.references())
    if parts.vae_encoder:
        manifest["vae_encoder"] = parts.vae_encoder.to_json()
    if parts.errors:
        manifest["errors"] = {path: float(f"{error:.2e}") for path, error in parts.errors.items()}
    if quantized := _quantized(parts):
        manifest["transformer"]["quantized"] = quantized
    if parts.loras:
        fused = [{"file": lora.file.name, "scale": lora.scale} for lora in parts.loras]
        manifest["loras"] = fused
    if parts.settings.skipping:
        manifest["skipping"] = [_schedule(entry) for entry in parts.settings.skipping]
    if adapter.cfg_rescale:
        manifest["cfg_rescale"] = adapter.cfg_rescale
    if adapter.sigmas:
        manifest["sigmas"] = adapter.sigmas
    if adapter.distilled:
        manifest["distilled"] = True
    if adapter.mu:
        manifest["mu"] = adapter.mu
    if parts.prompt:
        manifest["prompt"] = _prompt(parts.prompt, parts.encoders, parts.errors)
    if classes := adapter.classes():
        manifest["classes"] = asdict(classes)
    if _is_new(manifest):
        manifest["schema_version"] = SCHEMA_VERSION
    return manifest


def _is_new(manifest: dict[str, Any]) -> bool:
    """Whether readers of an older schema would misread what changes the picture."""
    prompt = manifest.get("prompt", {"encoders": {}})
    dropped = any("dropped" in encoder for encoder in prompt["encoders"].values())
    graphs = manifest["transformer"]["graphs"].values()
    source = any(tensor["role"] == "source" for graph in graphs for tensor in graph["inputs"])
    new = any(key in manifest for key in ("cfg_rescale", "mu", "references"))
    return source or dropped or "mask_padding" in prompt or new


def write_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """Validate `manifest` and write it to `folder`.

    Raises:
        jsonschema.ValidationError: it does not fit the schema; this is a bug of the exporter.
    """
    jsonschema.validate(manifest, resources.bundle_schema())
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _producer() -> dict[str, str]:
    versions = {package: metadata.version(package) for package in _PRODUCERS}
    return {"intaglio": __version__} | versions


def _prompt(
    layout: PromptLayout, graphs: dict[str, GraphSpec], errors: dict[str, float]
) -> dict[str, Any]:
    """Return the manifest's `prompt`. Encoders without a graph are left out of the segments."""
    encoders = {
        name: {
            "graph": spec.to_json(),
            "tokenizer": f"{layout.encoders[name].tokenizer}/{tokenizer_tables.FILE_NAME}",
            "max_length": layout.encoders[name].max_length,
        }
        | ({"dropped": dropped} if (dropped := layout.encoders[name].dropped) else {})
        | (
            {"quantized": {"scheme": spec.quantize, "error": errors[spec.path]}}
            if spec.quantize
            else {}
        )
        for name, spec in graphs.items()
    }
    segments = [
        {
            "encoders": [name for name in segment.encoders if name in graphs],
            "length": segment.length,
        }
        for segment in layout.text
    ]
    prompt = {
        "max_sequence_length": layout.max_sequence_length,
        "encoders": encoders,
        "text": segments,
        "text_width": layout.text_width,
        "pooled": [name for name in layout.pooled if name in graphs],
    }
    if layout.text_mask in graphs:
        prompt["text_mask"] = layout.text_mask
        if layout.mask_padding:
            prompt["mask_padding"] = layout.mask_padding
    return prompt


def _references(references: References) -> dict[str, Any]:
    given = {key: value for key, value in asdict(references).items() if value}
    if references.sizes:
        given["sizes"] = [list(size) for size in references.sizes]
    return given


def _quantized(parts: BundleParts) -> dict[str, Any] | None:
    """Return the manifest's `transformer.quantized` with the largest errors of the graphs."""
    specs = [spec for spec in parts.graphs.values() if spec.quantize]
    if not specs:
        return None
    quantized: dict[str, Any] = {
        "scheme": specs[0].quantize,
        "exact_channels": list(specs[0].exact),
        "error": max(parts.errors[spec.path] for spec in specs),
    }
    if parts.differences:
        quantized["difference_errors"] = parts.differences
    return quantized


# What the manifest has of a schedule's evidence, by its name there.
_MEASURED = {
    "evaluations": "evaluations", "error": "median_error", "largest_error": "largest_error"
}  # fmt: skip


def _schedule(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest's entry of a schedule of skipped steps in the settings."""
    evidence = entry.get("evidence", {})
    measured = {name: evidence[key] for key, name in _MEASURED.items() if key in evidence}
    return {key: value for key, value in entry.items() if key != "evidence"} | measured


def _without_false(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not False}


def _defaults(adapter: Adapter, settings: ModelSettings) -> dict[str, Any]:
    pipeline = adapter.defaults()
    known = ModelSettings(
        steps=pipeline.steps,
        cfg_scale=pipeline.cfg_scale,
        dg_scale=0.0,  # without a measured value DG is off, because a guess may harm
        height=pipeline.height,
        width=pipeline.width,
        distilled_guidance=pipeline.distilled_guidance,
    )
    merged = settings.over(known)
    keys = ["steps", "cfg_scale", "cfg_window", "distilled_guidance", "dg_scale", "dg_window"]
    keys += ["height", "width"]
    known_values = {key: value for key in keys if (value := getattr(merged, key)) is not None}
    return known_values | {"ma_keep": merged.keep_range()}


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in files
        if path != folder / MANIFEST
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
