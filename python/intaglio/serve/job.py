"""A request on its way, and what its client is told of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any, Literal

from intaglio.serve.admission import Admitted
from intaglio.serve.errors import ApiError

Status = Literal["queued", "running", "done", "failed", "cancelled"]
Event = tuple[int, str, dict[str, Any]]
# Of these only the latest counts; steps are all kept.
_SUPERSEDED = {"queued", "preview"}
# Between events, so that proxies do not take a connection for dead.
PING_SECONDS = 15.0


class Job:
    """Its state belongs to the event loop's thread, where the worker posts its calls.

    The last five attributes are the worker's.

    Attributes:
        stored: images go into the store, by URL; otherwise they stay in `pngs`.
        preview: decode previews while somebody follows the events.
        stop: how it shall end when the worker next looks at it; None: it runs on.
        started: set when it joins a batch, or ends before. ended: set when it has ended.
        ended_at: when that was, in seconds since 1970; None: it has not.
        names: of the images in the store. pngs: the images themselves.
        notes: what the client should know: a prompt that was cut.
        timings: seconds of each stage.
        options: for the batch; None: not made yet.
        overtaken: how many joined a batch before it that came after it.
        previewing: a preview is being decoded; no other is begun meanwhile.
    """

    def __init__(self, admitted: Admitted, client: str, *, stored: bool, preview: bool) -> None:
        self.id = secrets.token_hex(16)
        self.admitted = admitted
        self.client = client
        self.stored = stored
        self.preview = preview
        self.created = time.time()
        self.ended_at: float | None = None
        self.submitted = self.moved = time.monotonic()
        self.notes: list[str] = []
        self.timings: dict[str, float] = {}
        self.options: dict[str, Any] | None = None
        self.overtaken = 0
        self.previewing = False
        self.status: Status = "queued"
        self.position = 0
        self.step = 0
        self.sigma: float | None = None
        self.names: list[str] = []
        self.pngs: list[bytes] = []
        self.error: ApiError | None = None
        self.stop: ApiError | None = None
        self.watchers = 0
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self._events: list[tuple[str, dict[str, Any]] | None] = []
        self._latest: dict[str, int] = {}
        self._changed = asyncio.Event()

    @property
    def steps(self) -> int:
        return int(self.admitted.options["steps"])

    def wait_at(self, position: int) -> None:
        """It stands at this place of the queue, from 1."""
        if position != self.position:
            self.position = position
            self._tell("queued", position=position)

    def run(self) -> None:
        """It joined the batch."""
        self.status = "running"
        self.started.set()

    def advance(self, step: int, sigma: float) -> None:
        """So many steps are done."""
        self.step, self.sigma = step, sigma
        self._tell("step", step=step, steps=self.steps, sigma=sigma)

    def show(self, step: int, image: str) -> None:
        """What it looked like after so many steps, as a data URL."""
        if not self.ended.is_set():
            self._tell("preview", step=step, image=image)

    def finish(self, names: list[str], pngs: list[bytes]) -> None:
        """Its images are there."""
        self.names, self.pngs = names, pngs
        self._end("done", "done", images=names, notes=self.notes)

    def fail(self, error: ApiError) -> None:
        """It ends without images."""
        self.error = error
        status: Status = "cancelled" if error.detail.code == "cancelled" else "failed"
        self._end(status, "error", **error.detail.model_dump())

    def _end(self, status: Status, event: str, **data: Any) -> None:
        assert not self.ended.is_set()
        self.status = status
        self.options = None
        if not self.watchers:
            self._drop("preview")
        self._tell(event, **data)
        self.ended_at = time.time()
        self.started.set()
        self.ended.set()

    def _tell(self, event: str, **data: Any) -> None:
        if event in _SUPERSEDED:
            self._drop(event)
            self._latest[event] = len(self._events)
        self._events.append((event, data))
        self._changed.set()
        self._changed = asyncio.Event()

    def _drop(self, event: str) -> None:
        if event in self._latest:
            self._events[self._latest.pop(event)] = None

    async def follow(self, after: int = -1) -> AsyncGenerator[Event, None]:
        """Number, name and data of each event behind number `after`, until the job has ended.

        When nothing happens there is a "ping" now and then. To be closed by whoever leaves early.
        """
        self.watchers += 1
        try:
            number = after + 1
            while True:
                changed = self._changed
                while number < len(self._events):
                    if event := self._events[number]:
                        yield number, *event
                    number += 1
                if self.ended.is_set():
                    return
                try:
                    async with asyncio.timeout(PING_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield number - 1, "ping", {}
        finally:
            self.watchers -= 1
            if self.ended.is_set() and not self.watchers:
                self._drop("preview")


CANCELLED = ApiError(409, "cancelled", "the job was cancelled")
