"""The thread that runs the batch of one model."""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from operator import itemgetter
from typing import Any

import intaglio
from intaglio import Batch, BatchStep, Pipeline, _core
from intaglio.serve import logs
from intaglio.serve.engine.images import ImageStore, data_url, encode_png
from intaglio.serve.engine.inbox import Inbox
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import INTERNAL_ERROR, ApiError, run_error
from intaglio.serve.metrics import Metrics
from intaglio.serve.models.embeddings import EmbeddingCache
from intaglio.serve.models.registry import Model, Models
from intaglio.serve.settings import ServerSettings

# How many later requests may join a batch before an earlier one that does not fit it.
OVERTAKEN_LIMIT = 8

# Seconds that a closing server waits for a worker, since loading a model may take minutes.
JOIN_SECONDS = 10.0

_size = itemgetter("height", "width")


class Worker(threading.Thread):
    """Takes jobs of one model from its inbox, loads the model, and runs the jobs in a batch.

    A job that does not fit the batch, because of its size or because the batch is full, may be
    overtaken by jobs that fit, but only `OVERTAKEN_LIMIT` times. After that no other job joins
    before it.
    """

    def __init__(
        self,
        inbox: Inbox,
        model: Model,
        models: Models,
        cache: EmbeddingCache,
        store: ImageStore,
        metrics: Metrics,
        settings: ServerSettings,
    ) -> None:
        """Start the thread."""
        super().__init__(name=f"worker of {model.name}", daemon=True)
        self._inbox, self._model, self._models = inbox, model, models
        self._cache, self._store, self._metrics = cache, store, metrics
        self._max_batch, self._metadata = settings.max_batch, settings.metadata
        self._members: dict[int, Job] = {}
        self._decoding: dict[Future[None], int] = {}  # with the number of images
        self.start()

    def wake(self) -> None:
        """Do nothing, since the thread waits on the inbox."""

    def stop(self, job: Job, error: ApiError) -> None:
        """End `job` with `error` at its next step."""
        job.stop_error = error

    def join(self, timeout: float | None = JOIN_SECONDS) -> None:
        """Wait for the end of the thread, but no longer than `timeout` seconds."""
        super().join(timeout)

    def run(self) -> None:
        while self._inbox.wait():
            try:
                self._serve()
            except Exception as error:
                # The thread has to survive any error, since nothing else runs this model's jobs.
                answer = self._as_api_error(error)
                self._fail_members(answer)
                for job in self._inbox.take_all():
                    self._inbox.fail(job, answer)

    def _serve(self) -> None:
        """Load the model and run the waiting jobs."""
        self._models.reserve(self._model)
        try:
            if self._inbox.has_work():  # jobs may have ended during the wait for memory
                self._run_batches(self._models.acquire(self._model))
        finally:
            self._models.release(self._model)

    def _run_batches(self, pipeline: Pipeline) -> None:
        """Run batches until no job waits, or another model needs the memory."""
        batch = Batch(pipeline, max_images=self._max_batch)
        self._choice = pipeline._core.choice
        # Images are decoded while the other members' steps go on.
        with ThreadPoolExecutor(1, f"decoder of {self._model.name}") as decoder:
            self._fill_batch(batch, pipeline)
            while self._members:
                try:
                    self._step(batch, decoder)
                except Exception as error:
                    self._fail_members(self._as_api_error(error))
                    batch = Batch(pipeline, max_images=self._max_batch)
                if not self._model.wanted:
                    self._fill_batch(batch, pipeline)

    def _step(self, batch: Batch, decoder: ThreadPoolExecutor) -> None:
        """Remove the members that were stopped, and evaluate the others once."""
        for number, job in list(self._members.items()):
            if job.stop_error:
                batch.remove(number)
                self._inbox.fail(self._members.pop(number), job.stop_error)
        if not self._members:
            return
        name, in_turn = self._model.name, batch.in_turn
        with self._metrics.run.labels(name).time():
            steps = batch.step()
        for step in steps:
            job = self._members[step.id]
            if step.error:
                del self._members[step.id]
                self._inbox.fail(job, self._as_api_error(step.error))
                continue
            self._metrics.steps.labels(name).inc()
            self._inbox.advance(job, step.step + 1, step.sigma)
            if step.done:
                decoding = decoder.submit(self._finish, job, step)
                self._decoding[decoding] = job.admitted.images
                del self._members[step.id]
            elif job.preview and job.readers and not job.previewing and not in_turn:
                job.previewing = True
                decoder.submit(self._preview, job, step)

    def _fill_batch(self, batch: Batch, pipeline: Pipeline) -> None:
        """Add the waiting jobs that fit, in the order of the queue.

        At most one new prompt is encoded at a time, since the members of the batch wait meanwhile.
        """
        if not self._decoder_keeps_up():
            return
        misses = self._cache.misses
        left_behind: list[Job] = []
        joined = False
        for job in self._inbox.jobs():
            if batch.images >= self._max_batch:
                break
            if self._join_batch(batch, pipeline, job):
                joined = True
                for other in left_behind:
                    other.overtaken += 1
            elif job.overtaken >= OVERTAKEN_LIMIT:
                break
            else:
                left_behind.append(job)
            if self._cache.misses > misses:
                break
        if joined:
            self._inbox.update_positions()

    def _decoder_keeps_up(self) -> bool:
        """Return whether less than a full batch waits to be decoded.

        Without members to run in the meantime, wait until that is so.
        """
        while True:
            self._decoding = {d: n for d, n in self._decoding.items() if not d.done()}
            waiting = sum(n for d, n in self._decoding.items() if not d.running())
            if waiting < self._max_batch:
                return True
            if self._members:
                return False
            wait(self._decoding, return_when=FIRST_COMPLETED)

    def _has_room(self, batch: Batch, job: Job) -> bool:
        """Return whether number and size of the images fit, which needs no embeddings."""
        if batch.in_turn or batch.images + job.admitted.images > self._max_batch:
            return False
        size = _size(job.admitted.options)
        return all(_size(member.admitted.options) == size for member in self._members.values())

    def _join_batch(self, batch: Batch, pipeline: Pipeline, job: Job) -> bool:
        """Add `job` to the batch. Return False if it does not fit now, and True if it has ended."""
        if not self._has_room(batch, job):
            return False
        try:
            options = self._options(pipeline, job)
            fits = batch.accepts(**options)
        except Exception as error:
            if self._inbox.take(job):
                self._inbox.fail(job, self._as_api_error(error))
            return True
        if not fits:
            assert len(batch), "an empty batch accepts every request within the limits"
            return False
        if not self._inbox.take(job):
            return True
        job.started_at = time.monotonic()
        waited = job.started_at - job.submitted_at
        job.timings = {"queued": waited, **job.timings}
        self._metrics.wait.labels(self._model.name).observe(waited)
        self._inbox.start(job)
        try:
            self._members[batch.add(**options)] = job
        except Exception as error:
            self._inbox.fail(job, self._as_api_error(error))
        return True

    def _options(self, pipeline: Pipeline, job: Job) -> dict[str, Any]:
        """Return the job's options with embeddings in place of its prompts.

        With transport the prompts stay, since the library encodes all three texts together.
        """
        options = job.options
        if options is None:
            began = time.monotonic()
            options = dict(job.admitted.options)
            notes = _core.unused_guidance(self._model.bundle, options)
            if "prompt" in options and "transport_from" not in options:
                texts = options.pop("prompt"), options.pop("negative_prompt")
                embeds, cuts = self._cache.embed(pipeline, self._model.encoders, *texts)
                options["prompt_embeds"] = embeds
                notes = cuts + notes
            job.notes = notes
            job.timings = {"text": time.monotonic() - began}
            job.options = options
        return options

    def _preview(self, job: Job, step: BatchStep) -> None:
        """Decode and report the first image after this step. Runs in the decoder's thread."""
        try:
            png = encode_png(step.preview()[0], {})
            self._inbox.add_preview(job, step.step + 1, data_url(png))
        except Exception as error:
            logs.bug(error)
            job.preview = False  # the job itself goes on, since its images may still succeed
        finally:
            job.previewing = False

    def _finish(self, job: Job, step: BatchStep) -> None:
        """Decode and report the images. Runs in the decoder's thread."""
        try:
            pngs = [] if job.stop_error else self._decode(job, step)
            if job.stop_error:
                self._inbox.fail(job, job.stop_error)
            elif job.stored:
                self._inbox.finish(job, [self._store.write(png) for png in pngs], [])
            else:
                self._inbox.finish(job, [], pngs)
        except Exception as error:
            self._inbox.fail(job, self._as_api_error(error))

    def _decode(self, job: Job, step: BatchStep) -> list[bytes]:
        """Return the images as PNG files."""
        generation = step._core.finish()  # `step.finish` would also issue the notes as warnings
        if job.options and "prompt" in job.options:  # the batch has encoded it
            job.notes = generation.notes
        began = time.monotonic()
        bundle, options = self._model.bundle, job.admitted.options
        pngs = []
        for i, image in enumerate(generation.images):
            texts = _core.png_text(bundle, options, i, self._choice) if self._metadata else []
            pngs.append(encode_png(image, dict(texts)))
        self._count(job, generation, time.monotonic() - began)
        return pngs

    def _count(self, job: Job, generation: _core.Generation, png: float) -> None:
        timings = generation.timings
        job.evaluations = generation.evaluations
        job.timings = {
            **job.timings,
            "denoise": timings.denoise, "network": timings.network, "vae": timings.vae,
        }  # fmt: skip
        self._metrics.generated(self._model.name, generation, job.timings["text"], png)

    def _fail_members(self, error: ApiError) -> None:
        members, self._members = self._members, {}
        for job in members.values():
            self._inbox.fail(job, error)

    def _as_api_error(self, error: Exception) -> ApiError:
        """Convert an error for the client, and log one that the server does not expect.

        Does not return if the device is lost: another process runs the jobs again.
        """
        if isinstance(error, ApiError):
            return error
        if isinstance(error, intaglio.UnavailableError):
            self._models.leave_if_lost(error)
        if isinstance(error, intaglio.Error):
            return run_error(error)
        logs.bug(error)
        return INTERNAL_ERROR
