"""Sends requests to where the model runs, and again where that died."""

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
from intaglio.serve.errors import BUG, ApiError
from intaglio.serve.job import Job
from intaglio.serve.models import Model
from intaglio.serve.scheduler import Scheduler

# Replicas that one request may lose before it is taken for what kills them.
ATTEMPTS = 3


@dataclass(frozen=True)
class Drawn:
    """What a replica has for a job in the end.

    Attributes:
        error: why there are no images; None if there are.
        pngs: the images. notes: what the client should know. timings: seconds of each stage.
    """

    error: ApiError | None = None
    pngs: list[bytes] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)


# Draws a job on a replica: name and data of each step and preview, then what was drawn.
Draw = Callable[[Job], AsyncGenerator[tuple[str, dict[str, Any]] | Drawn, None]]


class Dispatcher:
    """Takes the place of `Worker` where the model runs in other processes, its replicas.

    A job is kept here until its images are there, so a replica that dies takes none with it: the
    job is sent again, with the seed that it had, and draws the same.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        model: Model,
        draw: Draw,
        lost: tuple[type[Exception], ...],
        room: int,
    ) -> None:
        """`lost` is what `draw` raises for a replica that died, `room` how many jobs are out at
        once; the others wait here, where clients take turns."""
        self._scheduler, self._model = scheduler, model
        self._draw, self._lost, self._room = draw, lost, room
        self._queue = scheduler.queues[model.name]
        self._out: dict[Job, asyncio.Task[tuple[list[str], list[bytes]]]] = {}

    def wake(self) -> None:
        """Sends as many as there is room for."""
        sent = 0
        with self._scheduler.changed:
            for job in self._queue.order()[: self._room - len(self._out)]:
                sent += self._queue.take(job)
                # The task may outlive the request that it is begun in: nothing of its context.
                self._out[job] = asyncio.get_running_loop().create_task(
                    self._run(job), context=Context()
                )
                self._out[job].add_done_callback(partial(self._ended, job))
        if sent:
            self._scheduler.renumber(self._model.name)

    def stop(self, job: Job, error: ApiError) -> None:
        """Ends `job`; its replica frees its rows at the next step."""
        if not job.stop:
            job.stop = error
            self._out[job].cancel()

    def join(self) -> None:
        """Nothing is left to wait for: a closed scheduler has no jobs."""
        assert not self._out

    async def _run(self, job: Job) -> tuple[list[str], list[bytes]]:
        """Names of the images in the store, and the images that are not in it. Raises ApiError."""
        drawn = await self._drawn(job)
        if drawn.error:
            raise drawn.error
        job.notes = drawn.notes
        self._count(job, drawn)
        if not job.stored:
            return [], drawn.pngs
        store = self._scheduler.store
        return [await asyncio.to_thread(store.write, png) for png in drawn.pngs], []

    async def _drawn(self, job: Job) -> Drawn:
        """What comes of `job`, on another replica if one dies. Raises ApiError."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._attempt(job)
            except self._lost as error:
                logs.write("replica_lost", id=job.id, attempt=attempt, error=type(error).__name__)
                self._scheduler.metrics.lost.labels(self._model.name).inc()
        message = f"{ATTEMPTS} replicas died while they drew this: change the request"
        raise ApiError(500, "replicas_lost", message)

    async def _attempt(self, job: Job) -> Drawn:
        sent = time.monotonic()
        async with aclosing(self._draw(job)) as events:
            async for told in events:
                if isinstance(told, Drawn):
                    job.timings = dict(told.timings)
                    job.timings["queued"] = sent - job.submitted + told.timings.get("queued", 0.0)
                    return told
                if job.status == "queued":
                    job.moved = time.monotonic()
                    job.run()
                event, data = told
                if event == "step":
                    job.advance(data["step"], data["sigma"])
                else:
                    job.show(data["step"], data["image"])
        raise AssertionError("a replica ends with what it has drawn")

    def _count(self, job: Job, drawn: Drawn) -> None:
        metrics, name = self._scheduler.metrics, self._model.name
        metrics.images.labels(name).inc(len(drawn.pngs))
        metrics.steps.labels(name).inc(job.steps)
        for stage, seconds in job.timings.items():
            if stage == "queued":
                metrics.wait.labels(name).observe(seconds)
            else:
                metrics.stage.labels(name, stage).observe(seconds)

    def _ended(self, job: Job, task: asyncio.Task[tuple[list[str], list[bytes]]]) -> None:
        del self._out[job]
        error = job.stop if task.cancelled() else job.stop or task.exception()
        if not error:
            self._scheduler.end(job, job.finish, *task.result())
        else:
            if not isinstance(error, ApiError):
                logs.bug(error)
                error = BUG
            self._scheduler.end(job, job.fail, error)
        self.wake()
