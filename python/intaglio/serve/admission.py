"""A request held against the limits, before any work starts, and turned into options."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from intaglio import UsageError, _core
from intaglio.serve.errors import ApiError, limit_error, value_error
from intaglio.serve.models import Model, defaults_of
from intaglio.serve.schemas import GenerationRequest
from intaglio.serve.settings import Limits

# Fields that are options of generate() as they stand; those that a bundle has defaults for.
_GUIDED = ("steps", "cfg_scale", "cfg_window", "dg_scale", "dg_window", "ma_keep")


@dataclass(frozen=True)
class Admitted:
    """A request that may run.

    Attributes:
        model: what draws it.
        options: keywords of `Pipeline.generate`.
        images: how many it draws.
        fields: the request's, with defaults filled in.
    """

    model: Model
    options: dict[str, Any]
    images: int
    fields: dict[str, Any]


def admit(request: GenerationRequest, model: Model, limits: Limits, max_batch: int) -> Admitted:
    """Checks all that can be checked without running. Raises ApiError naming the field."""
    images = request.n or 1
    most = min(limits.n, max_batch)
    if images > most:
        raise limit_error("n", f"n {images} is above this server's limit: give {most} or fewer")
    height, width = _size(request, model, limits)
    if images * height * width > limits.total_pixels:
        raise limit_error(
            "size",
            f"size {width}x{height} times n {images} is above this server's limit of"
            f" {limits.total_pixels} pixels: give less of one",
        )
    texts = _texts(request, model, limits)
    guided = _guided(request, model, limits)
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    seeds = [seed + i for i in range(images)]
    options = {**texts, **guided, "height": height, "width": width, "seeds": seeds}
    fields = {"model": model.name, **texts, "n": images, "size": f"{width}x{height}"}
    return Admitted(model, options, images, {**fields, "seed": seed, **guided})


def _size(request: GenerationRequest, model: Model, limits: Limits) -> tuple[int, int]:
    """Height and width in pixels."""
    defaults, latent, unit = model.bundle.defaults, model.bundle.latent, model.unit
    height, width = defaults.height, defaults.width
    if request.size:
        width, height = map(int, request.size.split("x"))
    if latent.fixed_size and (height, width) != (latent.max_height, latent.max_width):
        raise value_error(
            "size",
            f"size {width}x{height} does not fit {model.name}, which draws"
            f" {latent.max_width}x{latent.max_height} only: leave size out",
        )
    largest_height = min(latent.max_height, limits.height)
    largest_width = min(latent.max_width, limits.width)
    if height > largest_height or width > largest_width:
        raise limit_error(
            "size",
            f"size {width}x{height} is above the limit: give up to"
            f" {largest_width}x{largest_height}",
        )
    if height % unit or width % unit:
        raise value_error(
            "size",
            f"size {width}x{height} does not fit {model.name}: give multiples of {unit} pixels",
        )
    return height, width


def _texts(request: GenerationRequest, model: Model, limits: Limits) -> dict[str, Any]:
    """What says what to draw: prompt and negative prompt, or the class."""
    if classes := model.bundle.classes:
        for name in ("prompt", "negative_prompt"):
            if getattr(request, name):
                way_out = "leave it out, and give class_label"
                raise value_error(name, f"{name}: {model.name} is drawn by class; {way_out}")
        if request.class_label is None or not 0 <= request.class_label < classes.count:
            way_out = f"give a number from 0 to {classes.count - 1}"
            raise value_error("class_label", f"class_label says what to draw: {way_out}")
        return {"class_label": request.class_label}
    if not model.encoders:
        raise value_error("model", f"model {model.name} has no text encoders: choose another")
    if request.class_label is not None:
        message = f"class_label: {model.name} is drawn by prompt; leave it out"
        raise value_error("class_label", message)
    if request.prompt is None:
        raise value_error("prompt", "prompt is missing: say what to draw")
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
    for name, text in texts.items():
        if len(text) > limits.prompt_characters:
            raise limit_error(
                name,
                f"{name} has {len(text)} characters, above this server's limit: give"
                f" {limits.prompt_characters} or fewer",
            )
    return texts


def _guided(request: GenerationRequest, model: Model, limits: Limits) -> dict[str, Any]:
    """Steps and guidance, the bundle's where the request says nothing."""
    values = defaults_of(model.bundle).model_dump()
    given = {name: getattr(request, name) for name in _GUIDED}
    values |= {name: value for name, value in given.items() if value is not None}
    if values["steps"] > limits.steps:
        raise limit_error(
            "steps",
            f"steps {values['steps']} is above this server's limit: give {limits.steps} or fewer",
        )
    try:
        guidance = {name: value for name, value in values.items() if name != "steps"}
        _core.check_guidance(_core.Guidance(**guidance))
    except UsageError as error:
        # The sentence begins with the option as a flag.
        flag, _, rest = str(error).partition(" ")
        field = flag.removeprefix("--").replace("-", "_")
        raise value_error(field, f"{field} {rest}") from None
    return values


def deadline_of(asked: float | None, limits: Limits) -> float:
    """Seconds that a request has. Raises ApiError for more than the server gives."""
    if asked is not None and asked > limits.deadline:
        raise ApiError(
            400,
            "limit_exceeded",
            f"deadline {asked:g} is above this server's limit: give {limits.deadline:g} seconds"
            " or fewer",
            param="deadline",
        )
    return limits.deadline if asked is None else asked
