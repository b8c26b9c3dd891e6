"""Logs on stderr, one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

# asyncio logs exceptions of tasks that nothing awaited. Python's warnings go to py.warnings, such
# as the one about a device that was not used.
_LEVELS = {
    "intaglio.serve": logging.INFO,
    "uvicorn": logging.WARNING,
    "asyncio": logging.WARNING,
    "py.warnings": logging.WARNING,
}
_LOGGER = logging.getLogger("intaglio.serve")


class JsonFormatter(logging.Formatter):
    """Formats a record as its time, level and event, followed by its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(level: int = logging.INFO) -> None:
    """Send all logs of the process to stderr, those of the server from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.captureWarnings(True)
    for name, lowest in _LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(max(lowest, level))


def write(event: str, **fields: Any) -> None:
    """Write one line."""
    _LOGGER.info(event, extra={"fields": fields})


def fault(event: str, **fields: Any) -> None:
    """Write one line about what whoever runs the server should repair."""
    _LOGGER.error(event, extra={"fields": fields})


def bug(error: BaseException) -> None:
    """Write a line with the traceback of an exception that the server does not expect."""
    _LOGGER.error("bug", exc_info=error)
