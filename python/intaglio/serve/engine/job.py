"""A job: one admitted request, its state, and the events that its readers receive."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal

from intaglio.serve.errors import ApiError
from intaglio.serve.models.registry import Model

Status = Literal["queued", "running", "done", "failed", "cancelled"]
Event = tuple[int, str, dict[str, Any]]
# Only the latest event with one of these names is kept; all step events are kept.
_SUPERSEDED = {"queued", "preview"}
# Seconds between events after which a ping is sent, so that proxies do not close the connection.
PING_SECONDS = 15.0


@dataclass(frozen=True)
class AdmittedRequest:
    """A request that passed all checks.

    Attributes:
        model: the model that draws it.
        options: keywords of `Pipeline.generate`.
        images: number of images.
        fields: the fields of the request, with defaults filled in.
        pictures: those options that are pictures of an edit, which `fields` lacks.
    """

    model: Model
    options: dict[str, Any]
    images: int
    fields: dict[str, Any]
    pictures: dict[str, Any] = field(default_factory=dict)


class Job:
    """The state of one request. It changes on the event loop's thread only.

    The exceptions are the attributes that the worker sets: `notes`, `timings`,
    `evaluations`, `options`, `overtaken`, `started_at` and `previewing`.

    Attributes:
        stored: whether images go to the store, to be fetched by URL; otherwise they stay in `pngs`.
        preview: whether previews are decoded while the events have a reader.
        stop_error: the error with which the worker ends the job at its next step; None: it runs on.
        started: set when the job joins a batch, or ends before. ended: set when it has ended.
        submitted_at: when it was created. started_at: when it joined a batch. Monotonic seconds.
        ended_at: when it ended, in seconds since 1970; None: it has not ended.
        names: the images' names in the store. pngs: the images that are not in the store.
        readers: number of readers of the events.
        notes: remarks for the client, such as a truncated prompt.
        timings: seconds of each stage. evaluations: how often the model ran.
        options: options for the batch; None until they are made.
        overtaken: number of jobs that came later but joined a batch earlier.
        previewing: whether a preview is being decoded; no other starts meanwhile.
    """

    def __init__(
        self, admitted: AdmittedRequest, client: str, *, stored: bool, preview: bool
    ) -> None:
        self.id = secrets.token_hex(16)
        self.admitted = admitted
        self.client = client
        self.stored = stored
        self.preview = preview
        self.created = time.time()
        self.ended_at: float | None = None
        self.submitted_at = self.started_at = time.monotonic()
        self.notes: list[str] = []
        self.timings: dict[str, float] = {}
        self.evaluations = 0
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
        self.stop_error: ApiError | None = None
        self.readers = 0
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self._events: list[tuple[str, dict[str, Any]] | None] = []
        self._latest: dict[str, int] = {}
        self._changed = asyncio.Event()

    @property
    def steps(self) -> int:
        return int(self.admitted.options["steps"])

    def set_position(self, position: int) -> None:
        """Set the position in the queue, counted from 1."""
        if position != self.position:
            self.position = position
            self._add_event("queued", position=position)

    def start(self) -> None:
        """Set the status to running, since the job joined a batch."""
        self.status = "running"
        self.started.set()

    def advance(self, step: int, sigma: float) -> None:
        """Set the number of finished steps."""
        self.step, self.sigma = step, sigma
        self._add_event("step", step=step, steps=self.steps, sigma=sigma)

    def add_preview(self, step: int, image: str) -> None:
        """Add the preview, as a data URL, after so many steps."""
        if not self.ended.is_set():
            self._add_event("preview", step=step, image=image)

    def finish(self, names: list[str], pngs: list[bytes]) -> None:
        """End the job with its images."""
        self.names, self.pngs = names, pngs
        self._end("done", "done", images=names, notes=self.notes)

    def fail(self, error: ApiError) -> None:
        """End the job without images."""
        self.error = error
        status: Status = "cancelled" if error.detail.code == "cancelled" else "failed"
        self._end(status, "error", **error.detail.model_dump())

    def _end(self, status: Status, event: str, **data: Any) -> None:
        assert not self.ended.is_set()
        self.status = status
        self.options = None
        if not self.readers:
            self._drop("preview")
        self._add_event(event, **data)
        self.ended_at = time.time()
        self.started.set()
        self.ended.set()

    def _add_event(self, event: str, **data: Any) -> None:
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
        """Yield number, name and data of each event after number `after`, until the job has ended.

        A "ping" is yielded when there was no event for a while. A reader that stops early has to
        close the generator.
        """
        self.readers += 1
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
            self.readers -= 1
            if self.ended.is_set() and not self.readers:
                self._drop("preview")
