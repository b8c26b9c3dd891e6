"""The server on Ray Serve: one front process with the request queue, and replicas of the models.

    serve run intaglio.serve.ray_app:app bundles=fashion.bundle

The front is the HTTP side of `intaglio serve`; each replica has a queue and a batch of its own. Ray
starts as many replicas as the load needs, and prefers a replica that has loaded the model of the
request. If a replica dies, the front sends its requests to another one.
"""

# Annotations are not postponed, since Ray reads the one of `app`.

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import IO, Annotated, Any

import click
from fastapi import FastAPI
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from intaglio import Error, UsageError
from intaglio.serve import logs
from intaglio.serve.api.schemas import GenerationRequest
from intaglio.serve.api.services import Services
from intaglio.serve.app import create_app
from intaglio.serve.engine.dispatcher import Dispatcher, ReplicaResult
from intaglio.serve.engine.images import ImageStore, TemporaryImages
from intaglio.serve.engine.inbox import Inbox
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import CANCELLED, ApiError, reason
from intaglio.serve.metrics import Metrics
from intaglio.serve.models.registry import Model, Models, absolute
from intaglio.serve.settings import ServerSettings, read_settings

# Ray raises these for a replica that died, and for a result that was lost with its machine.
LOST = (RayActorError, ObjectLostError)


def _split(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class Arguments(BaseModel):
    """The arguments of the application: NAME=VALUE for `serve run`, `args` in a Serve file.

    Attributes:
        bundles: folders or NAME=FOLDER, at the same path on every machine; separated by commas on
            the command line.
        config: file with the settings of `intaglio serve`; Ray itself sets host and port.
        autoscaling: fields of Ray Serve's AutoscalingConfig, for the replicas.
        cpus: CPUs of each replica. gpus: GPUs of each replica.
    """

    model_config = ConfigDict(extra="forbid")

    bundles: Annotated[list[str], BeforeValidator(_split), Field(min_length=1)]
    config: Path | None = None
    autoscaling: dict[str, Any] = {}
    cpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Refused(click.ClickException):
    """Ends `serve run` with one sentence, which `serve status` shows below Ray's own message."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"intaglio: {' '.join(str(error).split())}")

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message without a prefix."""
        click.echo(self.message, file, err=True)


def app(arguments: Arguments | dict[str, Any]) -> Application:
    """Build the application for `serve run`, a Serve file or `ray.serve.run`.

    Relative paths are relative to the folder of the calling process: that of `serve run`, or for a
    Serve file a process of the cluster. Raises Refused.
    """
    # With the annotation `Arguments` alone, Ray would check them itself and print a traceback.
    try:
        return _build(Arguments.model_validate(arguments))
    except ValidationError as errors:
        raise Refused(UsageError(_sentence(errors))) from None
    except Error as error:
        raise Refused(error) from None


def _sentence(errors: ValidationError) -> str:
    """Describe the first error in the arguments, or an unknown name if there is one."""
    wrong = max(errors.errors(), key=lambda error: error["type"] == "extra_forbidden")
    name = ".".join(map(str, wrong["loc"])) or "autoscaling"  # which Ray checks as a whole
    if wrong["type"] == "missing":
        return f"{name} is missing: give {name}=FOLDER, or {name} among args of a Serve file"
    if wrong["type"] == "extra_forbidden":
        return f"there is no argument {name}: give {', '.join(Arguments.model_fields)}"
    return f"{name} is invalid: {reason(wrong['msg'])}"


def _build(arguments: Arguments) -> Application:
    bundles = [absolute(bundle) for bundle in arguments.bundles]
    settings = read_settings(arguments.config and arguments.config.absolute(), {})
    Models(bundles, settings)  # reports a bad bundle here, not in a replica
    defaults = {"max_replicas": 4, "target_ongoing_requests": settings.max_batch}
    scaling = AutoscalingConfig(**defaults | arguments.autoscaling)
    replica = serve.deployment(Replica).options(
        max_ongoing_requests=_ongoing(settings),
        autoscaling_config=scaling,
        graceful_shutdown_timeout_s=settings.grace,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
    )
    front = serve.deployment(Front).options(
        max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0}
    )
    # The front sends as many requests as all replicas can hold, since Ray scales by what is sent.
    capacity = scaling.max_replicas * _ongoing(settings)
    return front.bind(replica.bind(bundles, settings), bundles, settings, capacity)


def _ongoing(settings: ServerSettings) -> int:
    """Return the requests that a replica holds: a full batch, and as many to follow."""
    return 2 * settings.max_batch


@serve.ingress()
class Front:
    """Accepts requests, and keeps each until its images arrive."""

    def __init__(
        self,
        replicas: DeploymentHandle,
        bundles: list[str],
        settings: ServerSettings,
        capacity: int,
    ) -> None:
        """`capacity` is the number of requests of one model that are with replicas at once."""
        logs.set_up()
        self._replicas, self._bundles = replicas, bundles
        self._settings, self._capacity = settings, capacity

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(Models(self._bundles, self._settings), self._settings, self._dispatcher)

    def _dispatcher(
        self, inbox: Inbox, model: Model, store: ImageStore, metrics: Metrics
    ) -> Dispatcher:
        handle = self._replicas.options(stream=True, multiplexed_model_id=model.name)
        return Dispatcher(
            inbox, store, metrics, lambda job: _run(handle, job), LOST, self._capacity
        )


async def _run(
    handle: DeploymentHandle, job: Job
) -> AsyncGenerator[tuple[str, dict[str, Any]] | ReplicaResult, None]:
    """Run `job` on some replica. Raises one of LOST."""
    response = handle.draw.remote(job.admitted.fields, job.client, job.preview)
    try:
        async for event in response:
            yield event
    finally:
        response.cancel()  # has no effect if it has ended


class Replica:
    """Runs requests of all models, each of which is loaded on first use."""

    def __init__(self, bundles: list[str], settings: ServerSettings) -> None:
        logs.set_up()
        models = Models(bundles, settings)
        # The front has applied the limit on waiting requests already.
        limits = settings.limits.model_copy(update={"queue": _ongoing(settings)})
        settings = settings.model_copy(update={"limits": limits})
        store = TemporaryImages(settings.image_seconds)  # stays empty: the front stores images
        self._services = Services(models, settings, store, Metrics())

        # Ray learns from this which models are loaded here; `Models` loads and evicts them.
        @serve.multiplexed(max_num_models_per_replica=models.loaded_at_once)  # type: ignore[untyped-decorator]
        async def loaded(name: str) -> Model:
            return models.get(name)

        self._loaded = loaded

    async def draw(
        self, fields: dict[str, Any], client: str, preview: bool
    ) -> AsyncGenerator[tuple[str, dict[str, Any]] | ReplicaResult, None]:
        """Yield each step and preview of a request that the front has admitted, then the result."""
        services = self._services
        await self._loaded(serve.get_multiplexed_model_id())
        try:
            request = GenerationRequest.model_validate(fields)
            job = services.make_job(request, client, stored=False, preview=preview)
            services.queue.submit(job, services.settings.limits.deadline)
        except ApiError as error:
            yield ReplicaResult(error)
            return
        try:
            async with aclosing(job.follow()) as events:
                async for _, event, data in events:
                    if event in {"step", "preview"}:
                        yield event, data
        finally:
            services.queue.stop(job, CANCELLED)  # has no effect if it has ended
        yield ReplicaResult(job.error, job.pngs, job.notes, job.timings)
