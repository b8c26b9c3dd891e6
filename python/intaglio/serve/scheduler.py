"""Requests in, batches out: the queues, the deadlines, and how it all ends."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from intaglio.serve import logs
from intaglio.serve.embeddings import EmbeddingCache
from intaglio.serve.errors import ApiError
from intaglio.serve.fair_queue import FairQueue
from intaglio.serve.images import ImageStore
from intaglio.serve.job import Job
from intaglio.serve.metrics import Metrics
from intaglio.serve.models import Model, Models
from intaglio.serve.settings import Settings
from intaglio.serve.worker import Worker


class Runner(Protocol):
    """Runs what stands in one model's queue: `Worker` here, `Dispatcher` on other machines."""

    def wake(self) -> None:
        """Somebody waits."""

    def stop(self, job: Job, error: ApiError) -> None:
        """Ends `job`, which was taken from the queue, with `error`; within a step."""

    def join(self) -> None:
        """Waits for its end once the scheduler is closed. Not on the event loop."""


MakeRunner = Callable[["Scheduler", Model], Runner]


class Scheduler:
    """Public methods are for the event loop's thread, but for those that say otherwise."""

    def __init__(
        self,
        models: Models,
        settings: Settings,
        store: ImageStore,
        cache: EmbeddingCache,
        metrics: Metrics,
        make_runner: MakeRunner = Worker,
    ) -> None:
        self.models, self.settings = models, settings
        self.store, self.cache, self.metrics = store, cache, metrics
        self.stopping = False
        # Guards the queues and `closed`; notified when either changes.
        self.changed = threading.Condition()
        self.closed = False
        self.queues: dict[str, FairQueue] = {model.name: FairQueue() for model in models}
        self._make_runner = make_runner
        self._runners: dict[str, Runner] = {}
        self._loop = asyncio.get_running_loop()
        self._alive: dict[Job, asyncio.TimerHandle] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._service = 1.0  # seconds that a request runs, a moving average

    @property
    def waiting(self) -> dict[str, int]:
        """Requests that wait, by model. For any thread."""
        with self.changed:
            return {name: len(queue) for name, queue in self.queues.items()}

    def running(self, model: Model) -> int:
        """Requests of the model that are in its batch, or being decoded."""
        jobs = [job for job in self._alive if job.admitted.model is model]
        return sum(job.status == "running" for job in jobs)

    def submit(self, job: Job, deadline: float) -> None:
        """Queues `job`, to end within `deadline` seconds. Raises ApiError: full, or stopping."""
        self.check_open()
        model = job.admitted.model
        with self.changed:
            self._make_place(job.client)
            self.queues[model.name].add(job)
            self.renumber(model.name)  # before a worker can take it
        late = ApiError(
            504, "deadline_exceeded", f"the request did not end within {deadline:g} seconds"
        )
        self._alive[job] = self._loop.call_later(deadline, self.stop, job, late)
        self._idle.clear()
        if model.name not in self._runners:
            self._runners[model.name] = self._make_runner(self, model)
        self._runners[model.name].wake()

    def check_open(self) -> None:
        """Raises ApiError when nothing new is taken any more."""
        if self.stopping:
            raise self._stopping_error()

    def stop(self, job: Job, error: ApiError) -> None:
        """Ends `job` with `error`: at once if it waits, at the next step if it runs."""
        if job.ended.is_set():
            return
        name = job.admitted.model.name
        with self.changed:
            waited = self.queues[name].remove(job)
        if waited:
            self.end(job, job.fail, error)
            self.renumber(name)
        else:
            self._runners[name].stop(job, error)

    def post(self, call: Callable[..., None], *values: Any) -> None:
        """Has the event loop make a call. For workers."""
        self._loop.call_soon_threadsafe(call, *values)

    def end(self, job: Job, call: Callable[..., None], *values: Any) -> None:
        """Makes the call that ends `job`, and counts it."""
        if job.status == "running":
            spent = time.monotonic() - job.moved
            self._service += 0.2 * (spent - self._service)
        call(*values)
        self._alive.pop(job).cancel()
        self.metrics.jobs.labels(job.admitted.model.name, job.status).inc()
        logs.job_ended(job, prompts=self.settings.log_prompts)
        if not self._alive:
            self._idle.set()

    def renumber(self, name: str) -> None:
        """Tells those that wait for the model where they stand."""
        with self.changed:
            order = self.queues[name].order()
        for place, job in enumerate(order, 1):
            job.wait_at(place)

    async def drain(self, grace: float) -> None:
        """Takes nothing new, hands back what waits, lets what runs end within `grace` seconds."""
        self.stopping = True
        with self.changed:
            waiting = [job for queue in self.queues.values() for job in queue.order()]
        for job in waiting:
            self.stop(job, self._stopping_error())
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            for job in list(self._alive):
                self.stop(job, self._stopping_error())
            await self._idle.wait()

    async def close(self) -> None:
        """Ends all that is left, and the workers."""
        await self.drain(0)
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        joins = [asyncio.to_thread(runner.join) for runner in self._runners.values()]
        await asyncio.gather(*joins)

    def _make_place(self, client: str) -> None:
        """Of a full queue, takes a request of whoever has most in it, for a client that has less
        than its share. Raises ApiError for one that has it. The caller holds `changed`."""
        waiting = [job for queue in self.queues.values() for job in queue.order()]
        limit = self.settings.limits.queue
        if len(waiting) < limit:
            return
        held = Counter(job.client for job in waiting)
        if held[client] >= limit // len(held.keys() | {client}):
            raise self._full_error(f"{len(waiting)} requests wait already", len(waiting))
        [(greatest, _)] = held.most_common(1)
        newest = max(
            (job for job in waiting if job.client == greatest), key=lambda job: job.submitted
        )
        reason = "the queue is full, and another client had fewer requests in it"
        self.stop(newest, self._full_error(reason, len(waiting)))

    def _full_error(self, reason: str, waiting: int) -> ApiError:
        after = self._retry_after(waiting)
        return ApiError(429, "queue_full", f"{reason}: come back later", retry_after=after)

    def _retry_after(self, waiting: int) -> int:
        at_once = max(1, len(self._alive) - waiting)
        return min(600, math.ceil(self._service * waiting / at_once) or 1)

    def _stopping_error(self) -> ApiError:
        after = math.ceil(self.settings.grace) or 1
        message = "the server is stopping: send the request again"
        return ApiError(503, "stopping", message, retry_after=after)
