"""One JSON object a line, on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intaglio.serve.job import Job

# Ours, uvicorn's, what nobody awaited, and where Python's warnings go: a device passed over.
_LEVELS = {
    "intaglio.serve": logging.INFO,
    "uvicorn": logging.WARNING,
    "asyncio": logging.WARNING,
    "py.warnings": logging.WARNING,
}
_LOGGER = logging.getLogger("intaglio.serve")


class JsonFormatter(logging.Formatter):
    """Time, level and event, and the fields that came with them."""

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


def set_up() -> None:
    """Sends them to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.captureWarnings(True)
    for name, level in _LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def write(event: str, **fields: Any) -> None:
    """One line."""
    _LOGGER.info(event, extra={"fields": fields})


def bug(error: BaseException) -> None:
    """A line with the traceback of what should not have happened."""
    _LOGGER.error("bug", exc_info=error)


def job_ended(job: Job, *, prompts: bool) -> None:
    """A line on a request that has ended, without its prompts unless asked."""
    texts = ("prompt", "negative_prompt")
    fields = job.admitted.fields
    write(
        "job",
        id=job.id,
        client=job.client,
        status=job.status,
        error=job.error.detail.code if job.error else None,
        seconds={name: round(spent, 4) for name, spent in job.timings.items()},
        notes=job.notes,
        **{name: value for name, value in fields.items() if prompts or name not in texts},
    )
