"""Tell errors of a model from errors of Intaglio while the model runs."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from intaglio_export.errors import ExportError
from intaglio_export.support.messages import out_of_memory, plain

_LIBRARIES = ("diffusers", "transformers")
# They compute what a model's code tells them to.
_BELOW = ("torch", "intaglio_export.precision")


@contextmanager
def running(what: str) -> Iterator[None]:
    """Make one sentence of an error that the model's own code raises inside.

    `what` names the model's part. An error of our code keeps its traceback, and so does a wrong
    call of the model's code, because Python raises that in the caller.

    Raises:
        ExportError: the model cannot be run.
    """
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        if out_of_memory(error) or not _of_the_model(error):
            raise
        raise ExportError(
            f"{what} cannot be run: {plain(error)}; a field of its configuration is wrong, so"
            " compare it with the original model's."
        ) from error


def _of_the_model(error: BaseException) -> bool:
    """Return whether the innermost code, except torch's, is that of diffusers or transformers."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__"))
        if not _is_of(module, _BELOW):
            return _is_of(module, _LIBRARIES)
    return False


def _is_of(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
