"""The library's own checks of a request, with each problem under the name of a request field."""

from __future__ import annotations

from typing import Any

from intaglio import Bundle, _core
from intaglio.serve.api.options import EDITING, FILES, REQUEST_OPTIONS
from intaglio.serve.errors import value_error

# Request fields that have another name as an option of `Pipeline.generate`.
_FIELDS = {"height": "size", "width": "size", "seeds": "seed"}


def check_options(bundle: Bundle, options: dict[str, Any]) -> None:
    """Raise ApiError for the first problem with `options`, which are keywords of `generate`.

    Problems that no field of a request can solve, such as a bundle without a VAE, are left to the
    run.
    """
    try:
        problems = _core.validate(bundle, options)
    except _core.UsageError as error:  # a value that its option cannot hold; the message names it
        raise value_error(str(error).split()[0], str(error)) from error
    for problem in problems:
        if problem.field in {*_FIELDS, *REQUEST_OPTIONS, *FILES, *EDITING}:
            field = _FIELDS.get(problem.field, problem.field)
            # A request gives both as its size.
            message = problem.message.replace("width and height", "size")
            if field in _MESSAGES:
                message = _MESSAGES[field](bundle, options)
            raise value_error(field, message)


def _size_message(bundle: Bundle, options: dict[str, Any]) -> str:
    """Return the message for the field `size`, in place of those for height and width."""
    latent = bundle.latent
    way_out = f"give multiples of {bundle.size_multiple} pixels"
    if latent.fixed_size:
        way_out = f"leave size out, since {latent.max_width}x{latent.max_height} is the only size"
    return f"size {options['width']}x{options['height']} does not fit {bundle.name}: {way_out}"


def _mask_message(bundle: Bundle, options: dict[str, Any]) -> str:
    """Return the message for a mask that draws nothing, which the library calls white nowhere."""
    cell = bundle.latent.vae_scale_factor
    return (
        "the transparent parts of mask are too small, so that nothing would be drawn: make a part"
        f" of {cell}x{cell} pixels or more fully transparent"
    )


# In place of the library's messages, whose words are not those of a request.
_MESSAGES = {"size": _size_message, "mask": _mask_message}
