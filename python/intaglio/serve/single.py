"""One request at a time, with the calls of a batch."""

from __future__ import annotations

import queue
import threading
from typing import Any

from PIL.Image import Image

import intaglio
from intaglio import Generation, Pipeline, Step


class BatchStep:
    """A member whose solver step has ended."""

    def __init__(self, run: _Run, step: Step | None, error: intaglio.Error | None) -> None:
        self._run, self._step = run, step
        self.id = run.id
        self.error = error
        self.step = step.step if step else -1
        self.steps = step.steps if step else 0
        self.sigma = step.sigma if step else 0.0
        self.timestep = step.timestep if step else 0.0
        self.done = step is not None and step.step + 1 == step.steps

    def preview(self) -> list[Image]:
        """The current estimate of the clean images, decoded."""
        assert self._step
        return self._step.preview()

    def finish(self) -> Generation:
        """Decodes the images of a member that is done."""
        self._run.go.put(True)
        result = self._run.given.get()
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, Generation)
        return result


class _Run:
    """A call of generate() in a thread of its own, which waits after each step."""

    def __init__(self, pipeline: Pipeline, number: int, options: dict[str, Any]) -> None:
        self.id = number
        self.given: queue.SimpleQueue[Step | Generation | Exception] = queue.SimpleQueue()
        self.go: queue.SimpleQueue[bool] = queue.SimpleQueue()

        def on_step(step: Step) -> bool:
            self.given.put(step)
            return self.go.get()

        def run() -> None:
            try:
                self.given.put(pipeline.generate(**options, on_step=on_step))
            except Exception as error:
                self.given.put(error)

        threading.Thread(target=run, daemon=True).start()


class Batch:
    """As `intaglio.Batch`, with room for one member."""

    def __init__(self, pipeline: Pipeline, max_images: int = 8) -> None:
        self._pipeline, self._max_images = pipeline, max_images
        self._run: _Run | None = None
        self._first: Step | Generation | Exception | None = None
        self._ids = 0
        self.images = 0

    def __len__(self) -> int:
        return int(self._run is not None)

    def accepts(self, **options: Any) -> bool:
        """Whether `add` would take it now."""
        return self._run is None and len(options["seeds"]) <= self._max_images

    def add(self, **options: Any) -> int:
        """Begins it; raises what generate() raises."""
        assert self.accepts(**options)
        self._ids += 1
        run = _Run(self._pipeline, self._ids, options)
        self._first = run.given.get()
        if isinstance(self._first, Exception):
            raise self._first
        self._run, self.images = run, len(options["seeds"])
        return run.id

    def remove(self, number: int) -> None:
        """Ends it."""
        assert self._run
        self._run.go.put(False)
        self._run, self.images = None, 0

    def step(self) -> list[BatchStep]:
        """The next step of the member."""
        run = self._run
        assert run
        result, self._first = self._first, None
        if result is None:
            run.go.put(True)
            result = run.given.get()
        if isinstance(result, intaglio.Error):
            self._run, self.images = None, 0
            return [BatchStep(run, None, result)]
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, Step)
        step = BatchStep(run, result, None)
        if step.done:
            self._run, self.images = None, 0
        return [step]
