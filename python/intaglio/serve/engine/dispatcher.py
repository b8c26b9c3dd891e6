"""Sends jobs to replicas of the model in other processes, and sends them again if one dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from intaglio.serve import logs
from intaglio.serve.engine.images import ImageStore
from intaglio.serve.engine.inbox import Inbox
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import INTERNAL_ERROR, ApiError
from intaglio.serve.metrics import Metrics

# Replicas that one request may lose before it fails, since the request itself may crash them.
ATTEMPTS = 3


@dataclass(frozen=True)
class ReplicaResult:
    """The final result of a job on a replica.

    Attributes:
        error: why there are no images; None if there are.
        pngs: the images. notes: remarks for the client. timings: seconds of each stage.
        evaluations: how often the model ran.
    """

    error: ApiError | None = None
    pngs: list[bytes] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0


# Runs a job on a replica. Yields name and data of each step and preview, and then the result.
RunOnReplica = Callable[[Job], AsyncGenerator[tuple[str, dict[str, Any]] | ReplicaResult, None]]


class Dispatcher:
    """Takes the place of `Worker` when the model runs in other processes, its replicas.

    Jobs stay in this process until their images arrive, so a replica that dies loses no job: the
    dispatcher sends the job again with the same seed, and the new images are the same.
    """

    def __init__(
        self,
        inbox: Inbox,
        store: ImageStore,
        metrics: Metrics,
        run: RunOnReplica,
        lost: tuple[type[Exception], ...],
        capacity: int,
    ) -> None:
        """`lost` are the exceptions that `run` raises if the replica died.

        `capacity` is the number of jobs that are with replicas at once. All others wait in the
        inbox, where clients take turns.
        """
        self._inbox, self._store, self._metrics = inbox, store, metrics
        self._run, self._lost, self._capacity = run, lost, capacity
        self._dispatched: dict[Job, asyncio.Task[tuple[list[str], list[bytes]]]] = {}

    def wake(self) -> None:
        """Send as many jobs as the replicas have capacity for."""
        sent = 0
        for job in self._inbox.jobs()[: self._capacity - len(self._dispatched)]:
            sent += self._inbox.take(job)
            # An empty context, since the task may outlive the HTTP request that creates it.
            self._dispatched[job] = asyncio.get_running_loop().create_task(
                self._images_of(job), context=Context()
            )
            self._dispatched[job].add_done_callback(partial(self._ended, job))
        if sent:
            self._inbox.update_positions()

    def stop(self, job: Job, error: ApiError) -> None:
        """End `job`, whose replica frees its rows at the next step."""
        if not job.stop_error:
            job.stop_error = error
            self._dispatched[job].cancel()

    def join(self) -> None:
        """Return at once, since no job is left when the inbox is closed."""
        assert not self._dispatched

    async def _images_of(self, job: Job) -> tuple[list[str], list[bytes]]:
        """Return the names of stored images, and the other images. Raises ApiError."""
        result = await self._result_of(job)
        if result.error:
            raise result.error
        job.notes = result.notes
        self._count(job, result)
        if not job.stored:
            return [], result.pngs
        return [await asyncio.to_thread(self._store.write, png) for png in result.pngs], []

    async def _result_of(self, job: Job) -> ReplicaResult:
        """Run `job`, on another replica if one dies. Raises ApiError."""
        model = job.admitted.model.name
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._attempt(job)
            except self._lost as error:
                logs.write("replica_lost", id=job.id, attempt=attempt, error=type(error).__name__)
                self._metrics.lost.labels(model).inc()
        message = f"{ATTEMPTS} replicas died while they ran this request: change the request"
        raise ApiError(500, "replicas_lost", message)

    async def _attempt(self, job: Job) -> ReplicaResult:
        sent_at = time.monotonic()
        async with aclosing(self._run(job)) as events:
            async for event in events:
                if isinstance(event, ReplicaResult):
                    queued = sent_at - job.submitted_at + event.timings.get("queued", 0.0)
                    job.timings = {**event.timings, "queued": queued}
                    return event
                if job.status == "queued":
                    job.started_at = time.monotonic()
                    self._inbox.start(job)
                name, data = event
                if name == "step":
                    self._inbox.advance(job, data["step"], data["sigma"])
                else:
                    self._inbox.add_preview(job, data["step"], data["image"])
        raise AssertionError("a replica did not end its stream with a result")

    def _count(self, job: Job, result: ReplicaResult) -> None:
        metrics, name = self._metrics, job.admitted.model.name
        metrics.images.labels(name).inc(len(result.pngs))
        metrics.steps.labels(name).inc(job.steps)
        metrics.evaluations.labels(name).inc(result.evaluations)
        for stage, seconds in job.timings.items():
            if stage == "queued":
                metrics.wait.labels(name).observe(seconds)
            else:
                metrics.stage.labels(name, stage).observe(seconds)

    def _ended(self, job: Job, task: asyncio.Task[tuple[list[str], list[bytes]]]) -> None:
        del self._dispatched[job]
        error = job.stop_error if task.cancelled() else job.stop_error or task.exception()
        if not error:
            self._inbox.finish(job, *task.result())
        else:
            if not isinstance(error, ApiError):
                logs.bug(error)
                error = INTERNAL_ERROR
            self._inbox.fail(job, error)
        self.wake()
