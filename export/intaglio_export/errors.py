"""The error for mistakes of the user and failures of the machine, with its exit code."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of the command line."""

    OK = 0
    USAGE = 2
    BAD_INPUT = 3
    UNAVAILABLE = 4
    NO_MEMORY = 5
    INTERRUPTED = 130


class ExportError(Exception):
    """An error whose message says in one sentence what is wrong, where, and what to do."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.BAD_INPUT) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def usage_error(message: str) -> ExportError:
    """Return an `ExportError` about the value of a flag."""
    return ExportError(message, ExitCode.USAGE)
