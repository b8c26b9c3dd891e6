"""The FastAPI application, and the tasks that run as long as it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from intaglio import __version__
from intaglio.serve import logs
from intaglio.serve.api import jobs, openai, probes
from intaglio.serve.api.error_handlers import add_error_handlers
from intaglio.serve.api.page import add_page
from intaglio.serve.api.services import MakeRunner, Services
from intaglio.serve.engine.images import ImageStore, TemporaryImages
from intaglio.serve.errors import documented
from intaglio.serve.local_replicas import LocalReplicas
from intaglio.serve.metrics import Metrics
from intaglio.serve.models.registry import Models
from intaglio.serve.settings import ServerSettings
from intaglio.serve.transport.addresses import PublicUrl
from intaglio.serve.transport.auth import ApiKeys, require_key
from intaglio.serve.transport.http import BodyLimits, RequestLog


def create_app(
    models: Models,
    settings: ServerSettings,
    make_runner: MakeRunner | None = None,
    replicas: LocalReplicas | None = None,
) -> FastAPI:
    """Create the application that serves `models`.

    They run in `replicas`, in what `make_runner` creates, or else in this process. Raises
    InputError for the file of API keys or the folder of images.
    """
    if replicas:
        make_runner = replicas.dispatcher
    limits = settings.limits
    keys = ApiKeys(settings.api_keys, settings.shown("api_keys")) if settings.api_keys else None
    store = ImageStore(settings.images, settings.image_seconds) if settings.images else None
    if store:
        store.check()  # after the other checks, since it may create a folder
    with_key = [Depends(require_key)] if keys else []
    app = FastAPIOffline(  # FastAPI whose viewer at /docs needs no CDN
        redoc_url=None,
        title="Intaglio",
        version=__version__,
        summary="Images from diffusion transformers, with Detail Guidance",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=_lifespan(models, settings, store, make_runner, replicas),
    )
    app.state.keys, app.state.metrics = keys, Metrics()
    app.include_router(_head(app.router))
    for router in (openai.router, jobs.router):
        responses = documented(401) if keys else {}
        app.include_router(router, dependencies=with_key, responses=responses)
        app.include_router(_head(router), dependencies=with_key)
    for router in (jobs.images, probes.router):
        app.include_router(router)
        app.include_router(_head(router))
    add_page(app)
    add_error_handlers(app)
    _describe(app)
    app.add_middleware(
        BodyLimits, size=limits.body_bytes, seconds=limits.body_seconds,
        sizes={openai.EDITS: limits.upload_bytes},
    )  # fmt: skip
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's client for browsers sends many of its own
            expose_headers=["Retry-After"],
        )
    app.add_middleware(RequestLog)
    if settings.public_url:
        app.add_middleware(PublicUrl, url=settings.public_url)
    return app


def _head(router: APIRouter) -> APIRouter:
    """Return routes that answer HEAD where `router` answers GET; the OpenAPI document lacks them.

    FastAPI, unlike Starlette, does not add them itself.
    """
    head = APIRouter(include_in_schema=False)
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            head.add_api_route(
                route.path, route.endpoint, methods=["HEAD"], response_class=route.response_class,
                response_model_exclude_none=route.response_model_exclude_none,
            )  # fmt: skip
    return head


def _describe(app: FastAPI) -> None:
    """Correct the OpenAPI document.

    FastAPI assumes that invalid fields are answered with 422, and that an error has the media type
    of the route's success.
    """
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
    models: Models,
    settings: ServerSettings,
    given: ImageStore | None,
    make_runner: MakeRunner | None,
    replicas: LocalReplicas | None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Create the services at start, and close them at the end.

    Without a `given` store, images go to a temporary folder, which is removed at the end.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = given or TemporaryImages(settings.image_seconds)
        if replicas:
            replicas.start()
        app.state.services = Services(
            models, settings, store, app.state.metrics, make_runner,
            problem=(lambda: replicas.problem) if replicas else str,
        )  # fmt: skip
        cleaner = asyncio.create_task(_expire(store, settings.image_seconds))
        yield
        cleaner.cancel()
        await app.state.services.queue.close()
        if replicas:
            await replicas.close()
        store.close()

    return lifespan


async def _expire(store: ImageStore, seconds: float) -> None:
    while True:
        try:
            await asyncio.to_thread(store.expire)
        except Exception as error:
            logs.bug(error)  # continue, since the disk may recover
        await asyncio.sleep(min(60.0, seconds))
