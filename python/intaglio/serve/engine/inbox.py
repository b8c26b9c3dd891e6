"""What a worker sees of the request queue: the waiting jobs of its model, and where it reports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Protocol

from intaglio.serve.engine.fair_queue import FairQueue
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import ApiError


class Listener(Protocol):
    """Receives what happened to jobs. Called on the event loop's thread."""

    def end(self, job: Job, call: Callable[..., None], *values: Any) -> None:
        """End `job` by this call of one of its methods."""

    def update_positions(self, model: str) -> None:
        """Set the positions of the model's waiting jobs."""


class Inbox:
    """The waiting jobs of one model, and the reports about those that were taken.

    Methods may be called from any thread. Reports reach jobs on the event loop: at once if the
    caller runs there, otherwise in the order in which they were made.
    """

    def __init__(
        self, model: str, changed: threading.Condition, loop: asyncio.AbstractEventLoop,
        listener: Listener,
    ) -> None:  # fmt: skip
        """`changed` guards the waiting jobs and is notified when they change.

        All inboxes share one condition, since the limit on waiting jobs holds for all models
        together. Must be called on the thread of `loop`.
        """
        self.waiting = FairQueue()
        self._model, self._changed, self._loop, self._listener = model, changed, loop, listener
        self._loop_thread = threading.get_ident()
        self._closed = False

    # Jobs that wait.

    def wait(self) -> bool:
        """Block until a job waits. Return False when the server is closing."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.waiting) or self._closed)
            return not self._closed

    def has_work(self) -> bool:
        """Return whether a job waits and the server is not closing."""
        with self._changed:
            return len(self.waiting) > 0 and not self._closed

    def jobs(self) -> list[Job]:
        """Return the waiting jobs in the order in which they are next."""
        with self._changed:
            return self.waiting.order()

    def take(self, job: Job) -> bool:
        """Remove `job` to run it. Return False if it ended in the meantime."""
        with self._changed:
            return self.waiting.take(job)

    def take_all(self) -> list[Job]:
        """Remove and return all waiting jobs."""
        with self._changed:
            return [job for job in self.waiting.order() if self.waiting.take(job)]

    def close(self) -> None:
        """Make `wait` return False, now and from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Reports about jobs that were taken.

    def update_positions(self) -> None:
        """Set the positions of the jobs that still wait."""
        self._report(self._listener.update_positions, self._model)

    def start(self, job: Job) -> None:
        """Report that `job` joined a batch."""
        self._report(job.start)

    def advance(self, job: Job, step: int, sigma: float) -> None:
        """Report the number of finished steps, and the sigma at the start of the last one."""
        self._report(job.advance, step, sigma)

    def add_preview(self, job: Job, step: int, image: str) -> None:
        """Report a preview, as a data URL, after so many steps."""
        self._report(job.add_preview, step, image)

    def finish(self, job: Job, names: list[str], pngs: list[bytes]) -> None:
        """Report the images of `job`, by their names in the store or as PNG files."""
        self._report(self._listener.end, job, job.finish, names, pngs)

    def fail(self, job: Job, error: ApiError) -> None:
        """Report that `job` ended without images."""
        self._report(self._listener.end, job, job.fail, error)

    def _report(self, call: Callable[..., None], *values: Any) -> None:
        if threading.get_ident() == self._loop_thread:
            call(*values)
        else:
            self._loop.call_soon_threadsafe(call, *values)
