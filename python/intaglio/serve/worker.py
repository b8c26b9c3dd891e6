"""The thread that drives one model's batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import intaglio
from intaglio import Batch, BatchStep, Generation, Pipeline, _core
from intaglio.serve import logs
from intaglio.serve.errors import BUG, ApiError, run_error
from intaglio.serve.images import data_url, encode_png
from intaglio.serve.job import Job
from intaglio.serve.models import Model

if TYPE_CHECKING:
    from intaglio.serve.scheduler import Scheduler

# Requests that may join a batch before one that came earlier and does not fit it.
OVERTAKEN_MOST = 8

# Seconds that a closing server waits for a worker: one that loads a model may take minutes.
JOIN_SECONDS = 10.0

_size = itemgetter("height", "width")


class Worker(threading.Thread):
    """Waits for requests of one model, has it loaded, and runs them in a batch until none is left.

    A request that does not fit the batch (another size, no room) may be overtaken by those that
    do, but only so many times; then nobody joins until it has.
    """

    def __init__(self, scheduler: Scheduler, model: Model) -> None:
        super().__init__(name=f"worker of {model.name}", daemon=True)
        self._scheduler, self._model = scheduler, model
        self._queue = scheduler.queues[model.name]
        self._members: dict[int, Job] = {}
        self._decoding: dict[Future[None], int] = {}  # how many images each decodes
        self.start()

    def wake(self) -> None:
        """Somebody waits."""
        with self._scheduler.changed:
            self._scheduler.changed.notify_all()

    def stop(self, job: Job, error: ApiError) -> None:
        """Ends `job` at its next step."""
        job.stop = error

    def join(self, timeout: float | None = JOIN_SECONDS) -> None:
        """Waits for its end, but not for long."""
        super().join(timeout)

    def run(self) -> None:
        while self._wait():
            try:
                self._serve()
            except Exception as error:
                # Whatever it was: nobody waits for a thread that is dead.
                answer = self._explain(error)
                self._fail_members(answer)
                self._fail_waiting(answer)

    def _serve(self) -> None:
        """Has the model loaded, and runs what waits for it."""
        models = self._scheduler.models
        models.reserve(self._model)
        try:
            if self._needed():  # still: there may have been a wait for memory
                self._drive(models.acquire(self._model))
        finally:
            models.release(self._model)

    def _needed(self) -> bool:
        with self._scheduler.changed:
            return len(self._queue) > 0 and not self._scheduler.closed

    def _wait(self) -> bool:
        """Until somebody waits. False: the server closes."""
        scheduler = self._scheduler
        with scheduler.changed:
            scheduler.changed.wait_for(lambda: len(self._queue) or scheduler.closed)
            return not scheduler.closed

    def _drive(self, pipeline: Pipeline) -> None:
        """Runs batches until nobody waits, or another model needs the memory."""
        limit = self._scheduler.settings.max_batch
        batch = Batch(pipeline, max_images=limit)
        # Decoding goes on beside the steps of the others.
        with ThreadPoolExecutor(1, f"decoder of {self._model.name}") as decoder:
            self._admit(batch, pipeline)
            while self._members:
                try:
                    self._step(batch, decoder)
                except Exception as error:
                    self._fail_members(self._explain(error))
                    batch = Batch(pipeline, max_images=limit)
                if not self._model.wanted:
                    self._admit(batch, pipeline)

    def _step(self, batch: Batch, decoder: ThreadPoolExecutor) -> None:
        """One evaluation of all members, without those that shall end."""
        for number, job in list(self._members.items()):
            if job.stop:
                batch.remove(number)
                self._end(self._members.pop(number), job.fail, job.stop)
        if not self._members:
            return
        metrics, name = self._scheduler.metrics, self._model.name
        with metrics.run.labels(name).time():
            steps = batch.step()
        for step in steps:
            job = self._members[step.id]
            if step.error:
                del self._members[step.id]
                self._end(job, job.fail, run_error(step.error))
                continue
            metrics.steps.labels(name).inc()
            self._scheduler.post(job.advance, step.step + 1, step.sigma)
            if step.done:
                decoding = decoder.submit(self._finish, job, step)
                self._decoding[decoding] = job.admitted.images
                del self._members[step.id]
            elif job.preview and job.watchers and not job.previewing:
                job.previewing = True
                decoder.submit(self._preview, job, step)

    def _admit(self, batch: Batch, pipeline: Pipeline) -> None:
        """Lets those join that fit, in the order of the queue.

        Those that run wait for one new prompt to be encoded, not for several.
        """
        if not self._decoder_keeps_up():
            return
        misses = self._scheduler.cache.misses
        with self._scheduler.changed:
            order = self._queue.order()
        left_behind: list[Job] = []
        joined = False
        for job in order:
            if batch.images >= self._scheduler.settings.max_batch:
                break
            if self._join(batch, pipeline, job):
                joined = True
                for other in left_behind:
                    other.overtaken += 1
            elif job.overtaken >= OVERTAKEN_MOST:
                break
            else:
                left_behind.append(job)
            if self._scheduler.cache.misses > misses:
                break
        if joined:
            self._scheduler.post(self._scheduler.renumber, self._model.name)

    def _decoder_keeps_up(self) -> bool:
        """Whether less than a full batch waits for its decoding. With nothing to run meanwhile, it
        waits for that."""
        while True:
            self._decoding = {d: n for d, n in self._decoding.items() if not d.done()}
            waiting = sum(n for d, n in self._decoding.items() if not d.running())
            if waiting < self._scheduler.settings.max_batch:
                return True
            if self._members:
                return False
            wait(self._decoding, return_when=FIRST_COMPLETED)

    def _has_room(self, batch: Batch, job: Job) -> bool:
        """Whether the job's images and size fit; what can be told before its prompt is encoded."""
        if batch.images + job.admitted.images > self._scheduler.settings.max_batch:
            return False
        size = _size(job.admitted.options)
        return all(_size(member.admitted.options) == size for member in self._members.values())

    def _join(self, batch: Batch, pipeline: Pipeline, job: Job) -> bool:
        """Adds `job` to the batch. False: it does not fit now. True too when it has ended."""
        if not self._has_room(batch, job):
            return False
        try:
            options = self._options(pipeline, job)
            fits = batch.accepts(**options)
        except Exception as error:
            if self._take(job):
                self._end(job, job.fail, self._explain(error))
            return True
        if not fits:
            assert len(batch), "an empty batch takes whatever the limits let through"
            return False
        if not self._take(job):
            return True
        job.moved = time.monotonic()
        waited = job.moved - job.submitted
        job.timings = {"queued": waited, **job.timings}
        self._scheduler.metrics.wait.labels(self._model.name).observe(waited)
        self._scheduler.post(job.run)
        try:
            self._members[batch.add(**options)] = job
        except Exception as error:
            self._end(job, job.fail, self._explain(error))
        return True

    def _options(self, pipeline: Pipeline, job: Job) -> dict[str, Any]:
        """The job's options with its prompt as embeddings."""
        options = job.options
        if options is None:
            began = time.monotonic()
            options = dict(job.admitted.options)
            if "prompt" in options:
                texts = options.pop("prompt"), options.pop("negative_prompt")
                embeds, notes = self._scheduler.cache.embed(pipeline, self._model.encoders, *texts)
                options["prompt_embeds"] = embeds
                job.notes = notes
            job.timings = {"text": time.monotonic() - began}
            job.options = options
        return options

    def _preview(self, job: Job, step: BatchStep) -> None:
        """Decodes and hands over the first image as it stands. In the decoder's thread."""
        try:
            png = encode_png(step.preview()[0], {})
            self._scheduler.post(job.show, step.step + 1, data_url(png))
        except Exception as error:
            logs.bug(error)
            job.preview = False  # its images may still come out
        finally:
            job.previewing = False

    def _finish(self, job: Job, step: BatchStep) -> None:
        """Decodes and hands over the images. In the decoder's thread."""
        try:
            pngs = [] if job.stop else self._decode(job, step)
            if job.stop:
                self._end(job, job.fail, job.stop)
            elif job.stored:
                names = [self._scheduler.store.write(png) for png in pngs]
                self._end(job, job.finish, names, [])
            else:
                self._end(job, job.finish, [], pngs)
        except Exception as error:
            self._end(job, job.fail, self._explain(error))

    def _decode(self, job: Job, step: BatchStep) -> list[bytes]:
        """The images as files."""
        generation = step.finish()
        began = time.monotonic()
        pngs = [
            encode_png(image, dict(self._png_text(job, i)))
            for i, image in enumerate(generation.images)
        ]
        self._count(job, generation, time.monotonic() - began)
        return pngs

    def _png_text(self, job: Job, image: int) -> list[tuple[str, str]]:
        return _core.png_text(self._model.bundle, job.admitted.options, image)

    def _count(self, job: Job, generation: Generation, png: float) -> None:
        timings = generation.timings
        job.timings = {
            **job.timings,
            "denoise": timings.denoise, "network": timings.network, "vae": timings.vae,
        }  # fmt: skip
        metrics = self._scheduler.metrics
        metrics.generated(self._model.name, generation, job.timings["text"], png)

    def _take(self, job: Job) -> bool:
        """Takes `job` out of the queue. False: it ended meanwhile."""
        with self._scheduler.changed:
            return self._queue.take(job)

    def _end(self, job: Job, call: Callable[..., None], *values: Any) -> None:
        self._scheduler.post(self._scheduler.end, job, call, *values)

    def _fail_members(self, error: ApiError) -> None:
        members, self._members = self._members, {}
        for job in members.values():
            self._end(job, job.fail, error)

    def _fail_waiting(self, error: ApiError) -> None:
        with self._scheduler.changed:
            jobs = [job for job in self._queue.order() if self._queue.take(job)]
        for job in jobs:
            self._end(job, job.fail, error)

    def _explain(self, error: Exception) -> ApiError:
        """What the client is told; a bug of ours goes into the log."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, intaglio.Error):
            return run_error(error)
        logs.bug(error)
        return BUG
