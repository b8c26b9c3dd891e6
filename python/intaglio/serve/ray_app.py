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
from intaglio.serve.app import create_app
from intaglio.serve.engine.dispatcher import Dispatcher, ReplicaResult
from intaglio.serve.engine.images import ImageStore
from intaglio.serve.engine.inbox import Inbox
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import reason
from intaglio.serve.metrics import Metrics
from intaglio.serve.models.registry import Model, Models, absolute
from intaglio.serve.replica import Replica, held
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
    replica = serve.deployment(RayReplica).options(
        name="Replica",
        max_ongoing_requests=held(settings),
        autoscaling_config=scaling,
        graceful_shutdown_timeout_s=settings.grace,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
    )
    front = serve.deployment(Front).options(
        max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0}
    )
    # The front sends as many requests as all replicas can hold, since Ray scales by what is sent.
    capacity = scaling.max_replicas * held(settings)
    return front.bind(replica.bind(bundles, settings), bundles, settings, capacity)


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
    admitted = job.admitted
    response = handle.draw.remote(admitted.fields, admitted.pictures, job.client, job.preview)
    try:
        async for event in response:
            yield event
    finally:
        response.cancel()  # has no effect if it has ended


class RayReplica(Replica):
    """A replica that tells Ray which models it has loaded."""

    def __init__(self, bundles: list[str], settings: ServerSettings) -> None:
        logs.set_up()
        models = Models(bundles, settings)
        super().__init__(models, settings)

        # Ray learns from this which models are loaded here; `Models` loads and evicts them.
        @serve.multiplexed(max_num_models_per_replica=models.loaded_at_once)  # type: ignore[untyped-decorator]
        async def loaded(name: str) -> Model:
            return models.get(name)

        self._loaded = loaded

    async def draw(
        self, fields: dict[str, Any], pictures: dict[str, Any], client: str, preview: bool
    ) -> AsyncGenerator[tuple[str, dict[str, Any]] | ReplicaResult, None]:
        await self._loaded(serve.get_multiplexed_model_id())
        async with aclosing(super().draw(fields, pictures, client, preview)) as events:
            async for event in events:
                yield event
