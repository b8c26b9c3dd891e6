"""Optimization profiles: the sizes of images for an engine, and of the axes of its graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from intaglio_export.bundle.output_folder import MANIFEST
from intaglio_export.engines.bundle import Component
from intaglio_export.errors import ExportError, usage_error

# Larger images are decoded in tiles of this many pixels, the runtime's default of --vae-tile.
VAE_TILE = 1024
# As many as the server puts into one batch unless it is told otherwise (`max_batch`).
DEFAULT_BATCH = (1, 1, 8)
# The rows of one run of `conditioning`: one for each step and branch; more rows take several runs
# (cpp/src/pipeline/precompute.cpp).
CONDITIONS = 64
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The smallest, likeliest and largest size of an axis. Engines are tuned for the likeliest."""

    min: int
    opt: int
    max: int

    def of(self, unit: int) -> Range:
        """Return this range divided by `unit`."""
        return Range(self.min // unit, self.opt // unit, self.max // unit)

    def times(self, other: Range | int) -> Range:
        """Return the product of minima, optima and maxima."""
        by = Range(other, other, other) if isinstance(other, int) else other
        return Range(self.min * by.min, self.opt * by.opt, self.max * by.max)

    def at_most(self, limit: int) -> Range:
        """Return this range with no size above `limit`."""
        return Range(min(self.min, limit), min(self.opt, limit), min(self.max, limit))

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class Profile:
    """The number of images of one request, and their height and width in pixels."""

    batch: Range
    height: Range
    width: Range

    def to_json(self) -> dict[str, list[int]]:
        """Return the JSON object of `engine.schema.json`."""
        return {axis: list(ends.values()) for axis, ends in asdict(self).items()}

    def __str__(self) -> str:
        return f"batch={self.batch},height={self.height},width={self.width}"


def default_profile(manifest: dict[str, Any]) -> Profile:
    """Return 1 to 8 images with sides from half to one and a half times the default."""
    batch = Range(*DEFAULT_BATCH)
    if manifest["latent"].get("fixed_size"):
        return Profile(batch, *(_one(manifest["latent"][f"max_{side}"]) for side in _SIDES))
    return Profile(batch, *(_around(manifest, side) for side in _SIDES))


_SIDES = ("height", "width")


def _one(size: int) -> Range:
    return Range(size, size, size)


def _around(manifest: dict[str, Any], side: str) -> Range:
    unit, size = _unit(manifest), manifest["defaults"][side]
    largest = min(manifest["latent"][f"max_{side}"], size * 3 // 2) // unit * unit
    return Range(max(unit, size // 2 // unit * unit), size, max(size, largest))


def _unit(manifest: dict[str, Any]) -> int:
    """Return the pixels along one side of a token."""
    scale: int = manifest["latent"]["vae_scale_factor"]
    return scale * int(manifest["transformer"]["patch_size"])


def parse_profiles(texts: Sequence[str], manifest: dict[str, Any]) -> tuple[Profile, ...]:
    """Read --profile, as in `batch=1:1:8,height=16:32:48`. Other axes have their default.

    Without any text the result is the default profile.

    Raises:
        ExportError: the text cannot be read, or the model does not take such images or its own
            default size.
    """
    for side in _SIDES:
        size = manifest["defaults"][side]
        if wrong := _misfit(side, _one(size), manifest):
            raise ExportError(f"{MANIFEST}: the default {wrong}; export again.")
    default = default_profile(manifest)
    profiles = [_parse(text, default) for text in texts]
    for text, profile in zip(texts, profiles, strict=True):
        _check(text, profile, manifest)
    return tuple(dict.fromkeys(profiles)) or (default,)


def _parse(text: str, default: Profile) -> Profile:
    ranges = {axis: getattr(default, axis) for axis in ("batch", *_SIDES)}
    named = set()
    for part in text.split(","):
        axis, equals, ends = part.strip().partition("=")
        if axis not in ranges or not equals:
            raise usage_error(
                f"--profile {text or '(empty)'}: expected batch=, height= or width= with"
                " MIN:OPT:MAX, as in batch=1:1:8,height=512:1024:1536."
            )
        if axis in named:
            raise usage_error(f"--profile {text}: {axis} is named twice.")
        named.add(axis)
        ranges[axis] = _range(text, axis, ends)
    return Profile(**ranges)


_NUMBER = re.compile("[0-9]{1,9}")


def _range(text: str, axis: str, ends: str) -> Range:
    numbers = ends.split(":")
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        numbers = []
    if len(numbers) == 1:
        return _one(int(numbers[0]))
    if len(numbers) != 3:
        raise usage_error(
            f"--profile {text}: {axis}={ends} is neither MIN:OPT:MAX nor one number;"
            " give it as in 1:1:8."
        )
    found = Range(*(int(number) for number in numbers))
    if not found.min <= found.opt <= found.max:
        raise usage_error(f"--profile {text}: {axis}={ends} is not in order; give MIN:OPT:MAX.")
    return found


def _check(text: str, profile: Profile, manifest: dict[str, Any]) -> None:
    if not 1 <= profile.batch.min <= profile.batch.max <= _MAX_IMAGES:
        raise usage_error(f"--profile {text}: batch is 1 to {_MAX_IMAGES} images.")
    for side in _SIDES:
        if wrong := _misfit(side, getattr(profile, side), manifest):
            raise usage_error(f"--profile {text}: {wrong}.")


def _misfit(side: str, ends: Range, manifest: dict[str, Any]) -> str:
    """Say why the model does not take such a height or width; empty if it does."""
    name, latent, unit = manifest["name"], manifest["latent"], _unit(manifest)
    largest = latent[f"max_{side}"]
    for size in (ends.min, ends.opt, ends.max):
        if latent.get("fixed_size"):
            if size != largest:
                only = f"{latent['max_width']}x{latent['max_height']}"
                return f"{side} {size} does not fit {name}, which makes images of {only} only"
        elif size % unit or not unit <= size <= largest:
            most = largest // unit * unit
            return f"{side} {size} does not fit {name}: a multiple of {unit} from {unit} to {most}"
    return ""


_MAX_IMAGES = 1024  # a typing error should not request terabytes


def input_shapes(
    component: Component, profile: Profile, manifest: dict[str, Any]
) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Return the smallest, likeliest and largest shape of each input of a graph.

    Raises:
        ExportError: the size of an axis is unknown.
    """
    sizes = _axes(component.kind, profile, manifest)
    shapes = {}
    for tensor in component.inputs:
        for axis in tensor["axes"]:
            if isinstance(axis, str) and axis not in sizes:
                raise ExportError(
                    f"{component.folder / MANIFEST}: the axis {axis} of {tensor['name']} in"
                    f" {component.path} is unknown to this version; export again."
                )
        ranges = [sizes[axis] if isinstance(axis, str) else _one(axis) for axis in tensor["axes"]]
        shapes[tensor["name"]] = (
            tuple(ends.min for ends in ranges),
            tuple(ends.opt for ends in ranges),
            tuple(ends.max for ends in ranges),
        )
    return shapes


def _axes(kind: str, profile: Profile, manifest: dict[str, Any]) -> dict[str, Range]:
    """Return the sizes of the named axes of a graph.

    As in the C++ pipeline, a text encoder runs one prompt, the VAE one image, the transformer a row
    for each branch of each image, and `conditioning` a row for each step.
    """
    scale, unit = manifest["latent"]["vae_scale_factor"], _unit(manifest)
    if kind == "text_encoder":
        return {"prompts": _one(1)}
    if kind == "vae_encoder":
        sides = [_with_references(side, manifest) for side in (profile.height, profile.width)]
        return dict(zip(("images", "image_height", "image_width"), (_one(1), *sides), strict=True))
    if kind == "vae_decoder":
        height, width = (_decoded(side, scale) for side in (profile.height, profile.width))
        return {"images": _one(1), "latent_height": height, "latent_width": width}
    prompt = manifest.get("prompt", {}).get("text", ())
    text_length = _one(sum(segment["length"] for segment in prompt))
    base = 3 if _third_branch(manifest) else 2
    if kind == "conditioning":
        rows = Range(1, min(2 * manifest["defaults"]["steps"], CONDITIONS), CONDITIONS)
        return {"conditions": rows, "prompts": Range(1, 2, base), "text_length": text_length}
    tokens = profile.height.of(unit).times(profile.width.of(unit))
    likely, most = {"forked": (3, 3), "base": (2, base), "degraded": (1, 1)}[kind]
    return {
        "base_rows": _rows(profile.batch, 2, base),
        "rows": _rows(profile.batch, likely, most),
        "latent_height": profile.height.of(scale),
        "latent_width": profile.width.of(scale),
        "tokens": tokens,
        "references": Range(0, tokens.opt, max(tokens.max, _reference_tokens(manifest))),
        "text_length": text_length,
    }


def _reference_tokens(manifest: dict[str, Any]) -> int:
    """Return the tokens of one reference of the largest size."""
    references = manifest.get("references", {})
    areas: list[int] = [width * height for width, height in references.get("sizes", ())]
    areas.append(references.get("max_area", 0))
    return max(areas) // _unit(manifest) ** 2


def _with_references(side: Range, manifest: dict[str, Any]) -> Range:
    """Return a side of the pictures that are encoded, which references of a list may exceed."""
    listed = [size for sizes in manifest.get("references", {}).get("sizes", ()) for size in sizes]
    return Range(min([side.min, *listed]), side.opt, max([side.max, *listed]))


def _third_branch(manifest: dict[str, Any]) -> bool:
    """Return whether requests may have a third branch from the first block on.

    It takes the place of D_m where blocks are skipped (cpp/src/pipeline/skipped_layers.cpp) and for
    transport.
    """
    graphs = manifest["transformer"]["graphs"]
    skips = "conditioning" in graphs and manifest["family"] in ("sd3", "flux")
    inputs = [tensor for graph in graphs.values() for tensor in graph["inputs"]]
    return skips or any(tensor["role"] == "source" for tensor in inputs)


def _rows(batch: Range, likely: int, most: int) -> Range:
    """Return from one row per image to `most` branches of all images, of which `likely` run."""
    return Range(batch.min, batch.opt * likely, batch.max * most)


def _decoded(side: Range, scale: int) -> Range:
    """Return the latent cells that are decoded at once: an image or a tile, which may be narrow."""
    cells = side.at_most(VAE_TILE).of(scale)
    return Range(1, cells.opt, cells.max)
