"""The application: endpoints, and what runs while it does."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.responses import PlainTextResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from intaglio import __version__
from intaglio.serve import jobs, logs, openai
from intaglio.serve.auth import ApiKeys, require_key
from intaglio.serve.errors import documented
from intaglio.serve.http import BodyLimits, RequestLog, add_error_handlers
from intaglio.serve.images import ImageStore
from intaglio.serve.metrics import Metrics
from intaglio.serve.models import Models
from intaglio.serve.page import add_page
from intaglio.serve.scheduler import MakeRunner
from intaglio.serve.schemas import Health
from intaglio.serve.services import Services, Shared
from intaglio.serve.settings import Settings
from intaglio.serve.worker import Worker

probes = APIRouter(tags=["operation"])


@probes.get("/healthz")
async def healthz() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@probes.get("/readyz", responses={503: {"model": Health, "description": "The server is stopping."}})
async def readyz(shared: Shared, response: Response) -> Health:
    """Whether requests are taken."""
    if shared.scheduler.stopping:
        response.status_code = 503
        return Health(status="stopping")
    return Health(status="ok")


@probes.get("/metrics", response_class=PlainTextResponse)
async def metrics(shared: Shared) -> Response:
    """For Prometheus."""
    return Response(shared.metrics.page(), media_type=CONTENT_TYPE_LATEST)


def create_app(models: Models, settings: Settings, make_runner: MakeRunner = Worker) -> FastAPI:
    """The server of `models`. Raises InputError for the file of API keys or the images' folder."""
    limits = settings.limits
    keys = ApiKeys(settings.api_keys, settings.shown("api_keys")) if settings.api_keys else None
    # Last of what may be refused: it leaves a folder.
    store = ImageStore(settings.images, settings.image_seconds) if settings.images else None
    with_key = [Depends(require_key)] if keys else []
    app = FastAPIOffline(  # FastAPI, with the viewer at /docs from here and not from a CDN
        redoc_url=None,
        title="Intaglio",
        version=__version__,
        summary="Images from diffusion transformers, with Detail Guidance",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=_lifespan(models, settings, store, make_runner),
    )
    app.state.keys, app.state.metrics = keys, Metrics()
    for router in (openai.router, jobs.router):
        responses = documented(401) if keys else {}
        app.include_router(router, dependencies=with_key, responses=responses)
    app.include_router(jobs.images)
    app.include_router(probes)
    add_page(app)
    add_error_handlers(app)
    _describe(app)
    app.add_middleware(BodyLimits, size=limits.body_bytes, seconds=limits.body_seconds)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(RequestLog)
    return app


def _describe(app: FastAPI) -> None:
    """Corrects the OpenAPI page: FastAPI takes it that wrong fields are answered with 422, and
    errors in the form of what is answered otherwise."""
    schema = app.openapi()
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for status, response in operation["responses"].items():
                if status >= "400":
                    (content,) = response["content"].values()
                    response["content"] = {"application/json": content}
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)


def _lifespan(
    models: Models, settings: Settings, given: ImageStore | None, make_runner: MakeRunner
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Without a `given` store there is one that goes with the server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = given or ImageStore(
            Path(tempfile.mkdtemp(prefix="intaglio-")), settings.image_seconds
        )
        app.state.services = Services(models, settings, store, app.state.metrics, make_runner)
        cleaner = asyncio.create_task(_expire(store, settings.image_seconds))
        yield
        cleaner.cancel()
        await app.state.services.scheduler.close()
        if not given:
            shutil.rmtree(store.folder, ignore_errors=True)

    return lifespan


async def _expire(store: ImageStore, seconds: float) -> None:
    while True:
        try:
            await asyncio.to_thread(store.expire)
        except Exception as error:
            logs.bug(error)  # and on: the disk may come back
        await asyncio.sleep(min(60.0, seconds))
