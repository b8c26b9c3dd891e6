"""The parts of a running server that its endpoints share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client.core import Metric

from intaglio.serve.api.admission import admit
from intaglio.serve.api.schemas import GenerationRequest
from intaglio.serve.api.uploads import Pictures
from intaglio.serve.engine.images import ImageStore
from intaglio.serve.engine.inbox import Inbox
from intaglio.serve.engine.job import Job
from intaglio.serve.engine.request_queue import RequestQueue, Runner
from intaglio.serve.engine.worker import Worker
from intaglio.serve.metrics import Metrics, gauge, lookups
from intaglio.serve.models.embeddings import EmbeddingCache
from intaglio.serve.models.registry import Model, Models
from intaglio.serve.settings import ServerSettings

# Number of finished jobs that a client can still ask for.
JOBS_KEPT = 256
# Number of forms with pictures that are read at a time. Each has up to `upload_bytes`.
FORMS_AT_ONCE = 8

# Creates what runs the jobs of a model, in place of a worker in this process.
MakeRunner = Callable[[Inbox, Model, ImageStore, Metrics], Runner]


class Services:
    """The parts of one running server. Created on its event loop."""

    def __init__(
        self,
        models: Models,
        settings: ServerSettings,
        store: ImageStore,
        metrics: Metrics,
        make_runner: MakeRunner | None = None,
        problem: Callable[[], str] = str,
    ) -> None:
        """Without `make_runner`, each model has a worker in this process.

        `problem` says why no model can run now; it returns an empty string if they can.
        """
        self.models, self.settings, self.store, self.metrics = models, settings, store, metrics
        self.problem = problem
        self.cache = EmbeddingCache(settings.embedding_bytes)
        # Other processes load models and cache embeddings for themselves.
        self._has_workers = make_runner is None
        make_runner = make_runner or self._make_worker
        self.queue = RequestQueue(
            [model.name for model in models],
            settings,
            metrics,
            lambda inbox, model: make_runner(inbox, model, store, metrics),
        )
        self.jobs: dict[str, Job] = {}
        # Few pictures are in memory at a time: whole ones of one request, and files of these many.
        self.decoding = asyncio.Lock()
        self.forms = asyncio.Semaphore(FORMS_AT_ONCE)
        metrics.read(self._gauges)

    def _make_worker(
        self, inbox: Inbox, model: Model, store: ImageStore, metrics: Metrics
    ) -> Worker:
        return Worker(inbox, model, self.models, self.cache, store, metrics, self.settings)

    def make_job(
        self,
        request: GenerationRequest,
        client: str,
        *,
        stored: bool,
        preview: bool = False,
        pictures: Pictures | None = None,
    ) -> Job:
        """Check a request against all limits. Raises ApiError."""
        self.queue.check_open()
        model = self.models.get(request.model)
        admitted = admit(request, model, self.settings.limits, self.settings.max_batch, pictures)
        return Job(admitted, client, stored=stored, preview=preview)

    def find(self, job_id: str) -> Job | None:
        """Return the job with that id, or None if there is none or it has expired."""
        job = self.jobs.get(job_id)
        return None if not job or self._is_expired(job) else job

    def keep(self, job: Job) -> None:
        """Make `job` available by its id, and drop finished jobs that are too old or too many."""
        self.jobs[job.id] = job
        ended = sorted((job.ended_at, job.id) for job in self.jobs.values() if job.ended_at)
        for number, (_, job_id) in enumerate(ended):
            if len(ended) - number > JOBS_KEPT or self._is_expired(self.jobs[job_id]):
                del self.jobs[job_id]

    def _is_expired(self, job: Job) -> bool:
        oldest = time.time() - self.settings.image_seconds
        return job.ended_at is not None and job.ended_at < oldest

    def _gauges(self) -> Iterator[Metric]:
        models = list(self.models)
        waiting: dict[str, float] = {**self.queue.waiting}
        running: dict[str, float] = {m.name: self.queue.running(m) for m in models}
        yield gauge("queue_depth", "Waiting requests", waiting)
        yield gauge("running", "Running requests", running)
        if self._has_workers:
            loaded: dict[str, float] = {m.name: m.bytes if m.pipeline else 0 for m in models}
            yield gauge("loaded_bytes", "Size of the bundle's files while it is loaded", loaded)
            yield lookups(self.cache.hits, self.cache.misses)


async def services(request: Request) -> Services:
    """Return the services of the application that received the request."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


Shared = Annotated[Services, Depends(services)]
