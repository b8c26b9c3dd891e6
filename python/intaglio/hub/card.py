"""The model card of a bundle on the Hub, made of its manifest."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import ModelCardData

from intaglio.hub import HubName

# Licences for which the Hub has an identifier. It takes others as the name of an "other" licence.
_IDENTIFIERS = {
    "apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m",
    "unknown",
}  # fmt: skip
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def model_card(manifest: dict[str, Any], name: HubName) -> str:
    """Return the text of README.md for the bundle with this manifest."""
    rows = "\n".join(f"| {what} | {value} |" for what, value in _rows(manifest).items())
    condition = '--prompt "a fox in the snow"' if "prompt" in manifest else "--class 1"
    return f"""---
{_data(manifest).to_yaml()}
---

# {_plain(manifest["name"])}

This is a bundle for Intaglio: a diffusion transformer as ONNX graphs, with
[Detail Guidance](https://arxiv.org/abs/2510.11538). It has graphs, weights and tables, but no code.

```sh
intaglio pull {name.repo}
intaglio generate {name.repo} {condition} -o image.png
```

| | |
|---|---|
{rows}

The parity error is the largest relative difference ‖ONNX − torch‖ / ‖torch‖ of a row between a
graph on ONNX Runtime's CPU provider and the torch module that it was made of, on random inputs.
"""


def _data(manifest: dict[str, Any]) -> ModelCardData:
    """Return the fields that the Hub reads."""
    licence = manifest["license"]
    known = licence in _IDENTIFIERS
    source = manifest["source"].partition("@")[0]
    return ModelCardData(
        license=licence if known else "other",
        license_name=None if known else licence,
        base_model=source if _HUB_NAME.fullmatch(source) else None,
        library_name="intaglio",
        pipeline_tag="text-to-image" if "prompt" in manifest else "unconditional-image-generation",
        tags=["detail-guidance", "onnx", manifest["family"]],
    )


def _rows(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the rows of the card's table."""
    massive, defaults = manifest["massive_activations"], manifest["defaults"]
    quantized = manifest["transformer"].get("quantized")
    rows = {
        "Licence": _plain(manifest["license"]),
        "Exported from": _plain(manifest["source"]),
        "Family and layout": f"{manifest['family']}, {manifest['layout']}",
        "Precision": manifest["dtype"],
        "Devices": "CPU, and the GPUs that `intaglio devices` finds",
        "Parity error": _parity(manifest),
        "Detail Guidance": f"channels {', '.join(map(str, massive['channels']))} after block"
        f" {massive['block']}",
        "Defaults": f"{defaults['steps']} steps, {defaults['width']}x{defaults['height']} pixels,"
        f" CFG {defaults['cfg_scale']:g}, DG {defaults['dg_scale']:g}",
        "Size": f"{sum(file['bytes'] for file in manifest['files'].values()) / 1e6:,.1f} MB",
        "Made with": ", ".join(f"{what} {of}" for what, of in manifest["producer"].items()),
    }
    if quantized:
        rows["Precision"] = f"{quantized['scheme']} weights in the transformer"
        rows["Devices"] = "CPU"
    elif manifest["dtype"] != "float32":
        rows["Devices"] += "; the CPU computes matrix products in float32"
    encoders = manifest.get("prompt", {"encoders": {}})["encoders"].values()
    if schemes := [of["quantized"]["scheme"] for of in encoders if "quantized" in of]:
        rows["Precision"] += f", {schemes[0]} weights in the text encoders"
    if loras := manifest.get("loras"):
        rows["LoRAs"] = ", ".join(f"{_plain(lora['file'])} x {lora['scale']:g}" for lora in loras)
    return rows


def _parity(manifest: dict[str, Any]) -> str:
    errors = manifest.get("errors")
    if not errors:
        return "not recorded by the version that exported it"
    worst = max(errors, key=errors.__getitem__)
    return f"{errors[worst]:.1e} (`{worst}`)"


def _plain(text: str) -> str:
    """Return the text on one line, without what Markdown would take as markup or a new cell."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))
