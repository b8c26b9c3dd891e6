"""The server on Ray Serve: a front that keeps the requests, and replicas that draw them.

    serve run intaglio.serve.ray_app:app bundles=fashion.bundle

The front is the HTTP side of `intaglio serve`; each replica has its scheduler and its batch. Ray
starts as many replicas as the queue needs, and sends a request to one that has its model loaded if
it can. A replica that dies loses nothing: the front sends again what that had.
"""

# No postponed annotations: Ray looks at that of `app`.

import tempfile
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
from intaglio.serve.dispatcher import Dispatcher, Drawn
from intaglio.serve.errors import ApiError, said
from intaglio.serve.images import ImageStore
from intaglio.serve.job import CANCELLED, Job
from intaglio.serve.metrics import Metrics
from intaglio.serve.models import Model, Models, absolute
from intaglio.serve.scheduler import Scheduler
from intaglio.serve.schemas import GenerationRequest
from intaglio.serve.services import Services
from intaglio.serve.settings import Settings, read_settings

# What Ray raises for a replica that died, and for an answer that was lost with its machine.
LOST = (RayActorError, ObjectLostError)


def _split(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class Arguments(BaseModel):
    """What the application is told: `serve run` takes it as NAME=VALUE, a Serve file as args.

    Attributes:
        bundles: folders or NAME=FOLDER, at the same path on every machine; on the command line
            separated by commas.
        config: file with the settings of `intaglio serve`; host and port are Ray's own matter.
        autoscaling: fields of Ray Serve's AutoscalingConfig, for the replicas.
        cpus: of each replica. gpus: likewise.
    """

    model_config = ConfigDict(extra="forbid")

    bundles: Annotated[list[str], BeforeValidator(_split), Field(min_length=1)]
    config: Path | None = None
    autoscaling: dict[str, Any] = {}
    cpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Refused(click.ClickException):
    """Ends `serve run` with one sentence; `serve status` shows it below what Ray adds."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"intaglio: {' '.join(str(error).split())}")

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints it as it is."""
        click.echo(self.message, file, err=True)


def app(arguments: Arguments | dict[str, Any]) -> Application:
    """The application, for `serve run`, a Serve file or `ray.serve.run`.

    Relative paths are seen from the folder of the process that this runs in: that of `serve run`,
    but one of the cluster for a Serve file. Raises Refused.
    """
    # Ray would check them itself if the annotation were `Arguments`, and print a traceback.
    try:
        return _build(Arguments.model_validate(arguments))
    except ValidationError as errors:
        raise Refused(UsageError(_sentence(errors))) from None
    except Error as error:
        raise Refused(error) from None


def _sentence(errors: ValidationError) -> str:
    """What is wrong with the arguments: a name that there is not, or the first thing."""
    wrong = max(errors.errors(), key=lambda error: error["type"] == "extra_forbidden")
    name = ".".join(map(str, wrong["loc"])) or "autoscaling"  # what Ray checks as a whole
    if wrong["type"] == "missing":
        return f"{name} is missing: give {name}=FOLDER, or {name} among args of a Serve file"
    if wrong["type"] == "extra_forbidden":
        return f"there is no argument {name}: give {', '.join(Arguments.model_fields)}"
    return f"{name} does not fit: {said(wrong['msg'])}"


def _build(arguments: Arguments) -> Application:
    bundles = [absolute(bundle) for bundle in arguments.bundles]
    settings = read_settings(arguments.config and arguments.config.absolute(), {})
    Models(bundles, settings)  # refused here, not by a replica
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
    # As many as all replicas could have are out at once: Ray scales by what it sees.
    room = scaling.max_replicas * _ongoing(settings)
    return front.bind(replica.bind(bundles, settings), bundles, settings, room)


def _ongoing(settings: Settings) -> int:
    """Requests that a replica has at once: a full batch, and those that join when one leaves."""
    return 2 * settings.max_batch


@serve.ingress()
class Front:
    """Takes requests, and keeps each until its images are there."""

    def __init__(
        self, replicas: DeploymentHandle, bundles: list[str], settings: Settings, room: int
    ) -> None:
        """`room`: requests of a model that are with replicas at once."""
        logs.set_up()
        self._replicas, self._bundles = replicas, bundles
        self._settings, self._room = settings, room

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(Models(self._bundles, self._settings), self._settings, self._dispatcher)

    def _dispatcher(self, scheduler: Scheduler, model: Model) -> Dispatcher:
        handle = self._replicas.options(stream=True, multiplexed_model_id=model.name)
        return Dispatcher(scheduler, model, lambda job: _draw(handle, job), LOST, self._room)


async def _draw(
    handle: DeploymentHandle, job: Job
) -> AsyncGenerator[tuple[str, dict[str, Any]] | Drawn, None]:
    """Has `job` drawn by some replica. Raises one of LOST."""
    response = handle.draw.remote(job.admitted.fields, job.client, job.preview)
    try:
        async for told in response:
            yield told
    finally:
        response.cancel()  # nothing if it has ended


class Replica:
    """Draws requests of all models, each loaded when it is first asked for."""

    def __init__(self, bundles: list[str], settings: Settings) -> None:
        logs.set_up()
        models = Models(bundles, settings)
        # The front has counted them already.
        limits = settings.limits.model_copy(update={"queue": _ongoing(settings)})
        settings = settings.model_copy(update={"limits": limits})
        self._folder = tempfile.TemporaryDirectory(prefix="intaglio-")
        store = ImageStore(Path(self._folder.name), settings.image_seconds)
        self._services = Services(models, settings, store, Metrics())

        # Tells Ray which models are here. `Models` loads them and counts their memory.
        @serve.multiplexed(max_num_models_per_replica=models.held_at_once)  # type: ignore[untyped-decorator]
        async def loaded(name: str) -> Model:
            return models.get(name)

        self._loaded = loaded

    async def draw(
        self, fields: dict[str, Any], client: str, preview: bool
    ) -> AsyncGenerator[tuple[str, dict[str, Any]] | Drawn, None]:
        """Each step and preview of a request that the front has admitted, then what was drawn."""
        services = self._services
        await self._loaded(serve.get_multiplexed_model_id())
        try:
            request = GenerationRequest.model_validate(fields)
            job = services.make_job(request, client, stored=False, preview=preview)
            services.scheduler.submit(job, services.settings.limits.deadline)
        except ApiError as error:
            yield Drawn(error)
            return
        try:
            async with aclosing(job.follow()) as events:
                async for _, event, data in events:
                    if event in {"step", "preview"}:
                        yield event, data
        finally:
            services.scheduler.stop(job, CANCELLED)  # nothing if it has ended
        yield Drawn(job.error, job.pngs, job.notes, job.timings)
