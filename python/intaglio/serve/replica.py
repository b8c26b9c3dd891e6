"""Runs the requests that another process has admitted, with a queue and a batch of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from intaglio.serve.api.schemas import EditRequest, GenerationRequest
from intaglio.serve.api.services import Services
from intaglio.serve.api.uploads import Pictures
from intaglio.serve.engine.dispatcher import ReplicaResult
from intaglio.serve.engine.images import TemporaryImages
from intaglio.serve.errors import CANCELLED, ApiError
from intaglio.serve.metrics import Metrics
from intaglio.serve.models.registry import Models
from intaglio.serve.settings import ServerSettings


def held(settings: ServerSettings) -> int:
    """Return the requests that a replica holds: a full batch, and as many to follow."""
    return 2 * settings.max_batch


class Replica:
    """Runs requests of all models, each of which is loaded on first use."""

    def __init__(self, models: Models, settings: ServerSettings) -> None:
        """Create the queue. Must be called on the event loop."""
        # The front has applied the limit on waiting requests already.
        limits = settings.limits.model_copy(update={"queue": held(settings)})
        settings = settings.model_copy(update={"limits": limits})
        store = TemporaryImages(settings.image_seconds)  # stays empty: the front stores images
        self._services = Services(models, settings, store, Metrics())

    async def draw(
        self, fields: dict[str, Any], pictures: dict[str, Any], client: str, preview: bool
    ) -> AsyncGenerator[tuple[str, dict[str, Any]] | ReplicaResult, None]:
        """Yield each step and preview of a request that the front has admitted, then the result.

        `pictures` are the arrays of an edit.
        """
        services = self._services
        try:
            schema = EditRequest if pictures else GenerationRequest
            request = schema.model_validate(fields)
            job = services.make_job(
                request, client, stored=False, preview=preview,
                pictures=Pictures.of_arrays(**pictures) if pictures else None,
            )  # fmt: skip
            services.queue.submit(job, services.settings.limits.deadline)
        except ApiError as error:
            yield ReplicaResult(error)
            return
        try:
            async with aclosing(job.follow()) as events:
                async for _, event, data in events:
                    if event in {"step", "preview"}:
                        yield event, data
        finally:
            services.queue.stop(job, CANCELLED)  # has no effect if it has ended
        yield ReplicaResult(job.error, job.pngs, job.notes, job.timings, job.evaluations)
