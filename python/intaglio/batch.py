"""Requests that run together, each as `Pipeline.generate` would run it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intaglio import _core
from intaglio.pipeline import Generation, Pipeline, core_options

if TYPE_CHECKING:
    from PIL.Image import Image


class BatchStep:
    """A solver step of one member that has ended. Needs the batch no more: `preview` and `finish`
    may be called from other threads while it goes on.

    Attributes:
        id: the member's, from `Batch.add`.
        step: just done, from 0.
        steps: how many the member runs.
        sigma: the step started from.
        timestep: of its last evaluation of the model, in the scheduler's unit.
        done: it was the last; the member is out of the batch.
        error: what `generate` would have raised (predictions that are NaN), or None. The member is
            out of the batch.
    """

    def __init__(
        self, core: _core.BatchStep, bundle: _core.Bundle, options: dict[str, Any]
    ) -> None:
        """`Batch.step` makes them."""
        self.id: int = core.id
        self.step: int = core.step
        self.steps: int = core.steps
        self.sigma: float = core.sigma
        self.timestep: float = core.timestep
        self.done: bool = core.done
        self.error: _core.Error | None = core.error
        self._core, self._bundle, self._options = core, bundle, options

    def preview(self) -> list[Image]:
        """The estimate of the clean images after this step, decoded. Raises `error` if there is
        one."""
        return self._core.preview()

    def finish(self) -> Generation:
        """What `generate` would have returned: decodes the images.

        `loop` is empty, `base_rows` and `forked_rows` are the member's own, and of `timings`
        denoise and network are of the evaluations that the member was in. Warns about a prompt
        that was cut.

        Raises:
            UsageError: the member is not done.
            Error: `error`, if there is one.
        """
        return Generation.of(self._core.finish(), self._bundle, self._options)

    def __repr__(self) -> str:
        state = f", {self.error!r}" if self.error else ", done" if self.done else ""
        return f"<BatchStep of {self.id}: {self.step} of {self.steps}{state}>"


class Batch:
    """Requests of one size that share every run of the transformer, joining and leaving between
    evaluations. Guidance, windows, keep, steps, schedulers, seeds and prompts are each one's own.

        batch = intaglio.Batch(pipeline)
        batch.add(prompt="a boot", seeds=1)
        batch.add(prompt="a coat", steps=50, dg_scale=0)
        while len(batch):
            for step in batch.step():
                if step.done:
                    step.finish().save(f"{step.id}.png")

    Each gets what it would get alone. Where activations are quantised together with those of other
    rows (`intaglio export --quantize int8-dynamic`), there is one at a time. Not safe from several
    threads at once.
    """

    def __init__(self, pipeline: Pipeline, max_images: int = 8) -> None:
        """Holds memory for `max_images` images from the first request on. Raises UsageError for
        less than 1."""
        self._bundle = pipeline.bundle
        self._core = _core.Batch(pipeline._core, max_images)
        self._options: dict[int, dict[str, Any]] = {}

    def add(self, **options: Any) -> int:
        """Takes a request in: the keywords of `Pipeline.generate` but on_step and progress.

        Its prompt is encoded here, unless `prompt_embeds` is given. Returns the member's id. When
        it raises, the batch is as it was.

        Raises:
            UsageError: what `generate` raises before it runs; and a request that `accepts` says no
                to.
            InputError: as `generate`.
        """
        options = core_options(options)
        member = self._core.add(**options)
        self._options[member] = options
        return member

    def accepts(self, **options: Any) -> bool:
        """Whether there is room for the request's images, and it has the size, the number of text
        tokens and the channels of those that run, if any do. Raises what `generate` would for
        options that make no sense."""
        return self._core.accepts(**core_options(options))

    def remove(self, member: int) -> None:
        """Frees the rows of the member with this id. Raises UsageError when it is not there."""
        self._core.remove(member)
        del self._options[member]

    def step(self) -> list[BatchStep]:
        """One evaluation of every member, in one run of the transformer.

        Returns the solver steps that ended, by id; Heun's take two evaluations. Raises when the run
        as a whole fails, like OutOfMemoryError; every member is then as it was.
        """
        ended = [
            BatchStep(core, self._bundle, self._options[core.id]) for core in self._core.step()
        ]
        for step in ended:
            if step.done or step.error:
                del self._options[step.id]
        return ended

    def __len__(self) -> int:
        return len(self._core)

    @property
    def images(self) -> int:
        """Images of all members."""
        return self._core.images

    def __repr__(self) -> str:
        return f"<Batch of {self._bundle.name}: {len(self)} requests, {self.images} images>"
