"""Run requests together. Each gets the result that `Pipeline.generate` would give it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from intaglio import _core
from intaglio.pipeline import Generation, Pipeline, core_options, warn

if TYPE_CHECKING:
    from PIL.Image import Image


class BatchStep:
    """A solver step of one member that has ended. It does not need the batch: `preview` and
    `finish` may be called from other threads while the batch goes on.

    Attributes:
        id: the id of the member, as `Batch.add` returned it.
        step: the step that has ended, from 0.
        steps: how many steps the member runs.
        sigma: the noise level that the step started from.
        timestep: the timestep of the step's last evaluation of the model, in the scheduler's unit.
        skipped: whether the step was skipped, so that the model did not run.
        done: whether it was the last step. The member has then left the batch.
        error: the error that `generate` would have raised, for instance because predictions are
            NaN, or None. After an error the member has left the batch.
    """

    def __init__(self, core: _core.BatchStep) -> None:
        """Use `Batch.step`."""
        self.id: int = core.id
        self.step: int = core.step
        self.steps: int = core.steps
        self.sigma: float = core.sigma
        self.timestep: float = core.timestep
        self.skipped: bool = core.skipped
        self.done: bool = core.done
        self.error: _core.Error | None = core.error
        self._core = core

    def preview(self) -> list[Image]:
        """Decode the estimate of the clean images after this step. Raises `error` if there is
        one."""
        return self._core.preview()

    def finish(self) -> Generation:
        """Decode the images and return what `generate` would have returned.

        `loop` is empty, `base_rows` and `forked_rows` are the member's own, and the timings denoise
        and network are those of the evaluations that the member took part in. Each of its
        notes is also a warning.

        Raises:
            UsageError: the member has steps left.
            Error: `error`, if there is one.
        """
        result = self._core.finish()
        warn(result.notes)
        return Generation.of(result)

    def __repr__(self) -> str:
        state = f", {self.error!r}" if self.error else ", done" if self.done else ""
        return f"<BatchStep of {self.id}: {self.step} of {self.steps}{state}>"


class Batch:
    """Requests of one size that share every run of the transformer. They join and leave between
    evaluations. Each has its own guidance, windows, ma_keep, steps, scheduler, seeds and prompt.

        batch = intaglio.Batch(pipeline)
        batch.add(prompt="a boot", seeds=1)
        batch.add(prompt="a coat", steps=50, dg_scale=0)
        while len(batch):
            for step in batch.step():
                if step.done:
                    step.finish().save(f"{step.id}.png")

    Each request gets the result that it would get alone. An int8-dynamic bundle of an older
    version, whose rows change each other, therefore takes one request at a time. A batch is not
    safe to use from several threads at once.
    """

    def __init__(self, pipeline: Pipeline, max_images: int = 8) -> None:
        """Make an empty batch. From its first request on, it has memory for `max_images` images.
        Raises UsageError if `max_images` is less than 1."""
        self._bundle = pipeline.bundle
        self._core = _core.Batch(pipeline._core, max_images)

    def add(self, **options: Any) -> int:
        """Add a request, with the keywords of `Pipeline.generate` except on_step and progress.

        Encodes its prompt, unless `prompt_embeds` is given. Returns the member's id. After an error
        the batch is unchanged.

        Raises:
            UsageError: `generate` would raise it before it runs, or `accepts` refuses the request.
            InputError: `generate` would raise it.
        """
        return self._core.add(**core_options(options))

    def accepts(self, **options: Any) -> bool:
        """Return whether the request fits into the batch: whether there is room for its images and,
        if others run, whether it has their size, number of text tokens and channels. Raises what
        `generate` would raise for options that make no sense."""
        return self._core.accepts(**core_options(options))

    @property
    def in_turn(self) -> bool:
        """Whether a member runs whose parts are loaded in turn, because of `max_memory`. Then no
        other request can join, and there are no previews."""
        return self._core.in_turn

    def remove(self, member: int) -> None:
        """Free the rows of the member with this id. Raises UsageError if there is none."""
        self._core.remove(member)

    def step(self) -> list[BatchStep]:
        """Run one evaluation of every member in one run of the transformer, and then the steps of
        each that are skipped.

        Returns the solver steps that ended, by ids and in order; a step of Heun takes two
        evaluations. If the run as a whole fails, this raises an error, for instance
        OutOfMemoryError, and every member is unchanged.
        """
        return [BatchStep(core) for core in self._core.step()]

    def __len__(self) -> int:
        return len(self._core)

    @property
    def images(self) -> int:
        """The number of images of all members."""
        return self._core.images

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Batch has threads and open files and cannot be pickled or copied: make it in the"
            " worker"
        )

    def __repr__(self) -> str:
        return f"<Batch of {self._bundle.name}: {len(self)} requests, {self.images} images>"
