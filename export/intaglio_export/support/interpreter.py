"""What the libraries that read models need of Python itself."""

from __future__ import annotations

import sys

from intaglio_export.errors import ExitCode, ExportError


def check_docstrings() -> None:
    """Check that docstrings exist, from which transformers makes others when it is imported.

    Raises:
        ExportError: Python was told to leave them out.
    """
    if sys.flags.optimize > 1:
        raise ExportError(
            "transformers cannot be imported without docstrings; unset PYTHONOPTIMIZE, or leave out"
            " -OO (-O is fine).",
            ExitCode.UNAVAILABLE,
        )
