"""The model that `intaglio deploy triton` writes: the server's queue in Triton's Python backend."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # part of Triton
from pydantic import ValidationError

from intaglio.serve import logs
from intaglio.serve.api.schemas import GenerationRequest
from intaglio.serve.api.services import Services
from intaglio.serve.engine.images import TemporaryImages
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import CANCELLED, INTERNAL_ERROR, ApiError, reason, value_error
from intaglio.serve.metrics import Metrics
from intaglio.serve.models.registry import Models
from intaglio.serve.settings import ServerSettings
from intaglio.serve.triton_tensors import OUTPUTS, Tensor, inputs

# Seconds between checks whether a client has cancelled its request.
CANCEL_CHECK_SECONDS = 0.2


class TritonPythonModel:
    """Runs each image of a request as a job, and answers when all of them have ended."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle. Raises intaglio.Error for it, and ValidationError for a parameter."""
        logs.set_up()
        config = json.loads(args["model_config"])
        parameters = {
            name: value["string_value"]
            for name, value in config.get("parameters", {}).items()
            if name.islower()  # Triton's own parameters are in capitals
        }
        settings = ServerSettings.model_validate(
            {**parameters, "max_batch": config["max_batch_size"]}
        )
        bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
        models = Models([f"{args['model_name']}={bundle}"], settings)
        (model,) = models
        models.acquire(model)  # now, so that Triton is ready only when the model is loaded
        models.release(model)
        manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
        self._inputs = inputs(manifest)
        self._answering: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._begin(models, settings), self._loop).result()

    async def _begin(self, models: Models, settings: ServerSettings) -> None:
        store = TemporaryImages(settings.image_seconds)  # stays empty: answers have the images
        self._services = Services(models, settings, store, Metrics())

    def execute(self, requests: Sequence[Any]) -> None:
        """Submit the requests, which are answered later.

        Returns when all of them have joined the batch, so that further requests wait in Triton's
        queue.
        """
        joining = [
            asyncio.run_coroutine_threadsafe(self._join(request), self._loop)
            for request in requests
        ]
        for joined in joining:
            joined.result()

    def finalize(self) -> None:
        """Let running requests finish within the seconds of the setting `grace`."""
        queue = self._services.queue
        for end in (queue.drain(self._services.settings.grace), queue.close()):
            asyncio.run_coroutine_threadsafe(end, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _join(self, request: Any) -> None:
        sender = request.get_response_sender()
        jobs: list[Job] = []
        try:
            for fields in self._rows(request):
                jobs.append(self._submit(fields))
        except Exception as error:
            self._stop(jobs)
            _send(sender, _failed(error))
            return
        answering = asyncio.create_task(self._answer(sender, jobs))
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)
        for job in jobs:
            await job.started.wait()

    def _rows(self, request: Any) -> list[dict[str, Any]]:
        """Return the fields of each image."""
        rows: list[dict[str, Any]] = []
        for tensor in self._inputs:
            given = triton.get_input_tensor_by_name(request, tensor.name)
            if given is None:
                continue
            values = given.as_numpy()
            rows = rows or [{} for _ in values]
            for row, value in zip(rows, values, strict=True):
                row[tensor.name] = _field(tensor, value)
        return rows

    def _submit(self, fields: dict[str, Any]) -> Job:
        try:
            request = GenerationRequest.model_validate(fields)
        except ValidationError as errors:
            wrong = errors.errors()[0]
            name = str(wrong["loc"][0])
            raise value_error(name, f"{name} is invalid: {reason(wrong['msg'])}") from None
        job = self._services.make_job(request, "triton", stored=False)
        self._services.queue.submit(job, self._services.settings.limits.deadline)
        return job

    async def _answer(self, sender: Any, jobs: list[Job]) -> None:
        """Send the images or the error, whichever error it is, since nothing else answers."""
        try:
            response = await self._response(sender, jobs)
        except Exception as error:
            self._stop(jobs)
            response = _failed(error)
        _send(sender, response)

    async def _response(self, sender: Any, jobs: list[Job]) -> Any:
        """Return the response with the images of all jobs. Raises ApiError."""
        ended = asyncio.gather(*(job.ended.wait() for job in jobs))
        error: ApiError | None = None
        while not ended.done():
            await asyncio.wait({ended}, timeout=CANCEL_CHECK_SECONDS)
            error = error or next((job.error for job in jobs if job.error), None)
            if error or sender.is_cancelled():
                self._stop(jobs)  # has no effect on jobs that have ended
        if error:
            raise error
        values = {
            "png": np.array([[job.pngs[0]] for job in jobs], dtype=object),
            "seed": np.array([[job.admitted.fields["seed"]] for job in jobs], dtype=np.int64),
        }
        tensors = [triton.Tensor(output.name, values[output.name]) for output in OUTPUTS]
        return triton.InferenceResponse(tensors)

    def _stop(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._services.queue.stop(job, CANCELLED)


def _field(tensor: Tensor, value: np.ndarray[Any, Any]) -> Any:
    """Convert one image's entry of a tensor to a field of a request. Raises ApiError."""
    values = value.tolist()
    if values and isinstance(values[0], bytes):
        try:
            values = [text.decode() for text in values]
        except UnicodeDecodeError as error:
            says = f"{tensor.name} is not UTF-8 at byte {error.start}"
            raise value_error(tensor.name, says) from None
    return values[0] if len(values) == 1 and not tensor.is_list else values


def _failed(error: Exception) -> Any:
    """Return the response for an error, and log one that the server does not expect."""
    if not isinstance(error, ApiError):
        logs.bug(error)
        error = INTERNAL_ERROR
    return triton.InferenceResponse(error=_error(error))


def _error(error: ApiError) -> Any:
    """Convert to Triton's error with the code for its kind."""
    kinds = triton.TritonError
    code = kinds.INTERNAL
    if error.detail.code == CANCELLED.detail.code:
        code = kinds.CANCELLED
    elif error.status < 429:
        code = kinds.INVALID_ARG
    elif error.status in {429, 503}:
        code = kinds.UNAVAILABLE
    return kinds(error.detail.message, code)


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
