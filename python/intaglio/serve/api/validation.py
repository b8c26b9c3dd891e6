"""The library's own checks of a request against a bundle, with problems named by request field."""

from __future__ import annotations

from typing import Any

from intaglio import Bundle, UsageError, _core
from intaglio.serve.api.options import SAMPLING
from intaglio.serve.errors import ApiError, value_error


def size_multiple(bundle: Bundle) -> int:
    """Return the number of pixels that height and width have to be multiples of."""
    return bundle.latent.vae_scale_factor * bundle.patch_size


def check_options(bundle: Bundle, options: dict[str, Any]) -> None:
    """Raise ApiError for the first problem of `options`, which are keywords of `generate`."""
    unit = size_multiple(bundle)
    if options["height"] % unit or options["width"] % unit:
        size = f"{options['width']}x{options['height']}"
        raise value_error("size", f"size {size} is invalid: give multiples of {unit} pixels")
    guidance = {name: options[name] for name in SAMPLING if name != "steps"}
    try:
        _core.validate(_core.Guidance(**guidance))
    except UsageError as error:
        raise _as_field(error) from None


def _as_field(error: UsageError) -> ApiError:
    """Convert a message that starts with an option's flag."""
    flag, _, rest = str(error).partition(" ")
    field = flag.replace("-", "_")
    return value_error(field, f"{field} {rest}")
