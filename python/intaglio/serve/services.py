"""What the endpoints share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client.core import Metric

from intaglio.serve.admission import admit
from intaglio.serve.embeddings import EmbeddingCache
from intaglio.serve.images import ImageStore
from intaglio.serve.job import Job
from intaglio.serve.metrics import Metrics, gauge, lookups
from intaglio.serve.models import Models
from intaglio.serve.scheduler import MakeRunner, Scheduler
from intaglio.serve.schemas import GenerationRequest
from intaglio.serve.settings import Settings
from intaglio.serve.worker import Worker

# Ended jobs that can still be asked for.
JOBS_KEPT = 256


class Services:
    """One running server's parts. Made on its event loop."""

    def __init__(
        self,
        models: Models,
        settings: Settings,
        store: ImageStore,
        metrics: Metrics,
        make_runner: MakeRunner = Worker,
    ) -> None:
        self.models, self.settings, self.store, self.metrics = models, settings, store, metrics
        self.cache = EmbeddingCache(settings.embedding_bytes)
        self.scheduler = Scheduler(models, settings, store, self.cache, metrics, make_runner)
        self.jobs: dict[str, Job] = {}
        # What runs elsewhere loads models and keeps embeddings there.
        self._here = make_runner is Worker
        metrics.read(self._gauges)

    def make_job(
        self, request: GenerationRequest, client: str, *, stored: bool, preview: bool = False
    ) -> Job:
        """Checks a request against all limits. Raises ApiError."""
        self.scheduler.check_open()
        model = self.models.get(request.model)
        admitted = admit(request, model, self.settings.limits, self.settings.max_batch)
        return Job(admitted, client, stored=stored, preview=preview)

    def find(self, job_id: str) -> Job | None:
        """The job of that id; None if there is none or its time is over."""
        job = self.jobs.get(job_id)
        return None if not job or self._is_over(job) else job

    def keep(self, job: Job) -> None:
        """Lets `job` be asked for, and forgets ended ones that are old or too many."""
        self.jobs[job.id] = job
        ended = sorted((job.ended_at, job.id) for job in self.jobs.values() if job.ended_at)
        for number, (_, job_id) in enumerate(ended):
            if len(ended) - number > JOBS_KEPT or self._is_over(self.jobs[job_id]):
                del self.jobs[job_id]

    def _is_over(self, job: Job) -> bool:
        oldest = time.time() - self.settings.image_seconds
        return job.ended_at is not None and job.ended_at < oldest

    def _gauges(self) -> Iterator[Metric]:
        models = list(self.models)
        waiting: dict[str, float] = {**self.scheduler.waiting}
        running: dict[str, float] = {m.name: self.scheduler.running(m) for m in models}
        yield gauge("queue_depth", "Requests that wait", waiting)
        yield gauge("running", "Requests that run", running)
        if self._here:
            loaded: dict[str, float] = {m.name: m.bytes if m.pipeline else 0 for m in models}
            yield gauge("loaded_bytes", "Files of the bundle, if it is loaded", loaded)
            yield lookups(self.cache.hits, self.cache.misses)


async def services(request: Request) -> Services:
    """Those of the app that was asked."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


Shared = Annotated[Services, Depends(services)]
