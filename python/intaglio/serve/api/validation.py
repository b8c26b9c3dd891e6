"""The library's own checks of a request, with each problem under the name of a request field."""

from __future__ import annotations

from typing import Any

from intaglio import Bundle, _core
from intaglio.serve.api.options import REQUEST_OPTIONS
from intaglio.serve.errors import value_error

# Request fields that have another name as an option of `Pipeline.generate`.
_FIELDS = {"height": "size", "width": "size", "seeds": "seed"}


def check_options(bundle: Bundle, options: dict[str, Any]) -> None:
    """Raise ApiError for the first problem with `options`, which are keywords of `generate`.

    Problems that no field of a request can solve, such as a bundle without a VAE, are left to the
    run.
    """
    for problem in _core.validate(bundle, options):
        if problem.field in {*_FIELDS, *REQUEST_OPTIONS}:
            raise value_error(_FIELDS.get(problem.field, problem.field), problem.message)
