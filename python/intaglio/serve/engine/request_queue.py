"""The queue of all requests: admission to it, deadlines, cancelling, and shutdown."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from intaglio.serve import logs
from intaglio.serve.engine.inbox import Inbox
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import ApiError
from intaglio.serve.metrics import Metrics
from intaglio.serve.models.registry import Model
from intaglio.serve.settings import ServerSettings


class Runner(Protocol):
    """Runs the waiting jobs of one model: a `Worker` in this process, or a `Dispatcher`."""

    def wake(self) -> None:
        """Look at the inbox, since a job was added to it. Called on the event loop."""

    def stop(self, job: Job, error: ApiError) -> None:
        """End `job`, which was taken from the inbox, with `error` at its next step."""

    def join(self) -> None:
        """Wait for the end of the runner once its inbox is closed. Not called on the event loop."""


class RequestQueue:
    """The requests of all models, from submission to their end.

    Methods are for the event loop's thread, except for the property `waiting`.
    """

    def __init__(
        self,
        models: Iterable[str],
        settings: ServerSettings,
        metrics: Metrics,
        make_runner: Callable[[Inbox, Model], Runner],
    ) -> None:
        """`make_runner` creates the runner of a model when its first request is submitted."""
        self.stopping = False
        self._settings, self._metrics = settings, metrics
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()  # guards the waiting jobs of all inboxes
        self._inboxes = {name: Inbox(name, self._changed, self._loop, self) for name in models}
        self._make_runner = make_runner
        self._runners: dict[str, Runner] = {}
        self._alive: dict[Job, asyncio.TimerHandle] = {}  # with the timer of each deadline
        self._idle = asyncio.Event()
        self._idle.set()
        self._service_seconds = 1.0  # moving average of the time that a request runs

    @property
    def waiting(self) -> dict[str, int]:
        """The number of waiting requests by model. May be read from any thread."""
        with self._changed:
            return {name: len(inbox.waiting) for name, inbox in self._inboxes.items()}

    def running(self, model: Model) -> int:
        """Return the number of the model's requests that are in its batch or being decoded."""
        jobs = [job for job in self._alive if job.admitted.model is model]
        return sum(job.status == "running" for job in jobs)

    def submit(self, job: Job, deadline: float) -> None:
        """Add `job`, which has to end within `deadline` seconds.

        Raises ApiError if the queue is full or the server is stopping.
        """
        self.check_open()
        model = job.admitted.model
        with self._changed:
            self._make_room(job.client)
            self._inboxes[model.name].waiting.add(job)
            self.update_positions(model.name)  # before a worker can take it
            self._changed.notify_all()
        late = ApiError(
            504, "deadline_exceeded", f"the request did not finish within {deadline:g} seconds"
        )
        self._alive[job] = self._loop.call_later(deadline, self.stop, job, late)
        self._idle.clear()
        if model.name not in self._runners:
            self._runners[model.name] = self._make_runner(self._inboxes[model.name], model)
        self._runners[model.name].wake()

    def check_open(self) -> None:
        """Raise ApiError if the server is stopping."""
        if self.stopping:
            raise self._stopping_error()

    def check_room(self, client: str) -> None:
        """Raise ApiError if the server is stopping, or the queue is full for `client`."""
        self.check_open()
        with self._changed:
            self._waiting_with_room(client)

    def stop(self, job: Job, error: ApiError) -> None:
        """End `job` with `error`: at once if it waits, at its next step if it runs."""
        if job.ended.is_set():
            return
        name = job.admitted.model.name
        with self._changed:
            waited = self._inboxes[name].waiting.remove(job)
        if waited:
            self.end(job, job.fail, error)
            self.update_positions(name)
        else:
            self._runners[name].stop(job, error)

    def end(self, job: Job, call: Callable[..., None], *values: Any) -> None:
        """End `job` by this call of one of its methods, and count and log it."""
        if job.status == "running":
            seconds = time.monotonic() - job.started_at
            self._service_seconds += 0.2 * (seconds - self._service_seconds)
        call(*values)
        self._alive.pop(job).cancel()
        self._metrics.jobs.labels(job.admitted.model.name, job.status).inc()
        _log_end(job, prompts=self._settings.log_prompts)
        if not self._alive:
            self._idle.set()

    def update_positions(self, model: str) -> None:
        """Set the positions of the model's waiting jobs."""
        for position, job in enumerate(self._inboxes[model].jobs(), 1):
            job.set_position(position)

    async def drain(self, grace: float) -> None:
        """Reject new requests, fail the waiting ones, and give the running ones `grace` seconds."""
        self.stopping = True
        for job in self._waiting_jobs():
            self.stop(job, self._stopping_error())
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            for job in list(self._alive):
                self.stop(job, self._stopping_error())
            await self._idle.wait()

    async def close(self) -> None:
        """End all requests and all runners."""
        await self.drain(0)
        for inbox in self._inboxes.values():
            inbox.close()
        joins = [asyncio.to_thread(runner.join) for runner in self._runners.values()]
        await asyncio.gather(*joins)

    def _waiting_jobs(self) -> list[Job]:
        with self._changed:
            return [job for inbox in self._inboxes.values() for job in inbox.waiting.order()]

    def _make_room(self, client: str) -> None:
        """Remove a request from a full queue if `client` has less than its share in it.

        That is the newest request of the client with the most requests. Raises ApiError for a
        client that has its share or more. The caller holds `_changed`.
        """
        waiting = self._waiting_with_room(client)
        if len(waiting) < self._settings.limits.queue:
            return
        [(largest, _)] = Counter(job.client for job in waiting).most_common(1)
        newest = max(
            (job for job in waiting if job.client == largest), key=lambda job: job.submitted_at
        )
        message = "the queue is full, and another client had fewer requests in it"
        self.stop(newest, self._full_error(message, len(waiting)))

    def _waiting_with_room(self, client: str) -> list[Job]:
        """Return the waiting jobs. Raises ApiError if they leave no room for one of `client`."""
        waiting = self._waiting_jobs()
        limit = self._settings.limits.queue
        counts = Counter(job.client for job in waiting)
        if len(waiting) >= limit and counts[client] >= limit // len(counts.keys() | {client}):
            raise self._full_error(f"{len(waiting)} requests are waiting", len(waiting))
        return waiting

    def _full_error(self, message: str, waiting: int) -> ApiError:
        after = self._retry_after(waiting)
        return ApiError(429, "queue_full", f"{message}: try again later", retry_after=after)

    def _retry_after(self, waiting: int) -> int:
        running = max(1, len(self._alive) - waiting)
        return min(600, math.ceil(self._service_seconds * waiting / running) or 1)

    def _stopping_error(self) -> ApiError:
        after = math.ceil(self._settings.grace) or 1
        message = "the server is stopping: send the request again"
        return ApiError(503, "stopping", message, retry_after=after)


def _log_end(job: Job, *, prompts: bool) -> None:
    """Log a job that has ended, with its prompts and the notes on them if `prompts` says so."""
    texts = ("prompt", "negative_prompt", "transport_from", "notes")
    fields = {**job.admitted.fields, "notes": job.notes}
    logs.write(
        "job",
        id=job.id,
        client=job.client,
        status=job.status,
        error=job.error.detail.code if job.error else None,
        seconds={name: round(spent, 4) for name, spent in job.timings.items()},
        **{name: value for name, value in fields.items() if prompts or name not in texts},
    )
