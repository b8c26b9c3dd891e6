"""Admission: a request is checked against all limits before any work starts."""

from __future__ import annotations

import secrets
from typing import Any

from intaglio import Bundle
from intaglio._core import drawn_size
from intaglio.serve.api.model_views import defaults_of
from intaglio.serve.api.options import CLASS, EDITING, EXTRAS, SAMPLING, TEXTS
from intaglio.serve.api.schemas import EditRequest, GenerationRequest
from intaglio.serve.api.uploads import Pictures
from intaglio.serve.api.validation import check_options
from intaglio.serve.engine.job import AdmittedRequest
from intaglio.serve.errors import limit_error, value_error
from intaglio.serve.models.registry import Model
from intaglio.serve.settings import Limits


def admit(
    request: GenerationRequest,
    model: Model,
    limits: Limits,
    max_batch: int,
    pictures: Pictures | None = None,
) -> AdmittedRequest:
    """Check everything that can be checked without running. Raises ApiError naming the field."""
    images = request.n or 1
    largest = min(limits.n, max_batch)
    if images > largest:
        raise limit_error("n", f"n {images} exceeds this server's limit: give {largest} or fewer")
    height, width = _size(request, model, limits, pictures)
    more = _reference_pixels(request, model.bundle, pictures) if pictures else 0
    if images * (height * width + more) > limits.total_pixels:
        beside = f" and references of {more} pixels" if more else ""
        raise limit_error(
            "size",
            f"size {width}x{height}{beside} times n {images} exceeds this server's limit of"
            f" {limits.total_pixels} pixels: reduce size{' or references' if more else ''} or n",
        )
    subject = _subject(request, model, limits)
    sampling = _sampling(request, model, limits)
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    seeds = [seed + i for i in range(images)]
    options = {**subject, **sampling, "height": height, "width": width, "seeds": seeds}
    arrays = {}
    if pictures:
        _check_count(request, model, pictures)
        is_cut = sampling.get("mask_padding") is not None
        if is_cut:
            _check_result(images, pictures, limits)
        # A scaled picture takes less memory while it waits. The library scales references and what
        # it cuts out.
        is_whole = is_cut or _is_reference(request, model.bundle, pictures)
        arrays = pictures.options(None if is_whole else (width, height))
    options |= arrays
    check_options(model.bundle, options)
    fields = {"model": model.name, **subject, "n": images, "size": f"{width}x{height}"}
    fields |= {"seed": seed, **sampling}
    return AdmittedRequest(model, options, images, fields, arrays)


def _size(
    request: GenerationRequest, model: Model, limits: Limits, pictures: Pictures | None
) -> tuple[int, int]:
    """Return height and width in pixels, which are within the limits of server and model."""
    defaults, latent = model.bundle.defaults, model.bundle.latent
    height, width = defaults.height, defaults.width
    if pictures:
        given = {name: getattr(request, name) for name in ("strength", "mask_padding")}
        masked = pictures.mask is not None
        height, width = drawn_size(model.bundle, pictures.image.size, masked, given)
    if request.size:
        width, height = map(int, request.size.split("x"))
    largest_height, largest_width = limits.height, limits.width
    if not latent.fixed_size:
        largest_height = min(latent.max_height, largest_height)
        largest_width = min(latent.max_width, largest_width)
    if height > largest_height or width > largest_width:
        raise limit_error(
            "size",
            f"size {width}x{height} exceeds the limit: give up to {largest_width}x{largest_height}",
        )
    return height, width


def _is_reference(request: GenerationRequest, bundle: Bundle, pictures: Pictures) -> bool:
    """Return whether the library takes the picture of an edit as a reference."""
    return bundle.references is not None and pictures.mask is None and request.strength is None


def _reference_pixels(request: GenerationRequest, bundle: Bundle, pictures: Pictures) -> int:
    """Return the most pixels that the references have once the library has scaled them."""
    found = bundle.references
    if found is None or not _is_reference(request, bundle, pictures):
        return 0
    if found.sizes:
        return len(pictures.images) * max(width * height for width, height in found.sizes)
    areas = (picture.width * picture.height for picture in pictures.images)
    return sum(min(area, found.max_area) if found.max_area else area for area in areas)


def _check_count(request: GenerationRequest, model: Model, pictures: Pictures) -> None:
    """Raise ApiError if there are more pictures than the model takes."""
    references = model.bundle.references
    most = 1
    if references is not None and _is_reference(request, model.bundle, pictures):
        most = references.most
    if len(pictures.images) > most:
        raise limit_error(
            "image",
            f"image has {len(pictures.images)} files, of which this edit takes {most}: send fewer",
        )


def _check_result(images: int, pictures: Pictures, limits: Limits) -> None:
    """Raise ApiError if the images, which have the size of the upload, have too many pixels."""
    width, height = pictures.image.size
    if images * width * height > limits.upload_pixels:
        raise limit_error(
            "n",
            f"n {images} times {width}x{height}, the size of image, exceeds this server's limit of"
            f" {limits.upload_pixels} pixels: reduce n",
        )


def _subject(request: GenerationRequest, model: Model, limits: Limits) -> dict[str, Any]:
    """Return what to draw: the class, or the prompt and the texts beside it."""
    given = {name: getattr(request, name) for name in (*CLASS, *TEXTS)}
    if model.bundle.classes:
        # An empty prompt is accepted, since OpenAI's client always sends one.
        return {name: value for name, value in given.items() if value not in {None, ""}}
    if not model.encoders:
        raise value_error("model", f"model {model.name} has no text encoders: choose another model")
    subject = {name: value for name, value in given.items() if value is not None}
    if not subject.keys() & {"prompt", *CLASS}:
        raise value_error("prompt", "prompt is missing: give a description of the image")
    for name in TEXTS:
        length = len(subject.get(name, ""))
        if length > limits.prompt_characters:
            raise limit_error(
                name,
                f"{name} has {length} characters, which exceeds this server's limit: give"
                f" {limits.prompt_characters} or fewer",
            )
    subject.setdefault("negative_prompt", "")
    return subject


def _sampling(request: GenerationRequest, model: Model, limits: Limits) -> dict[str, Any]:
    """Return steps and guidance, with the bundle's defaults for those that are not given."""
    values: dict[str, Any] = defaults_of(model.bundle).model_dump()
    # Skipped blocks and transport take the place of DG.
    if request.slg_layers or request.slg_share or request.transport_from is not None:
        for name in ("dg_scale", "dg_window", "ma_keep"):
            values.pop(name, None)
    names = [*SAMPLING, *EXTRAS]
    if isinstance(request, EditRequest):
        names += EDITING
    given = {name: getattr(request, name) for name in names}
    values |= {name: value for name, value in given.items() if value is not None}
    if values["steps"] > limits.steps:
        raise limit_error(
            "steps",
            f"steps {values['steps']} exceeds this server's limit: give {limits.steps} or fewer",
        )
    return values


def deadline_of(requested: float | None, limits: Limits) -> float:
    """Return the seconds that a request has. Raises ApiError if it asks for more than allowed."""
    if requested is not None and requested > limits.deadline:
        raise limit_error(
            "deadline",
            f"deadline {requested:g} exceeds this server's limit: give {limits.deadline:g} seconds"
            " or less",
        )
    return limits.deadline if requested is None else requested
