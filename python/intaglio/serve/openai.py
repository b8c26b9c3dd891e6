"""OpenAI's endpoints."""

from __future__ import annotations

import asyncio
import base64
import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from intaglio.serve.admission import deadline_of
from intaglio.serve.auth import Client
from intaglio.serve.errors import documented
from intaglio.serve.http import error_response
from intaglio.serve.job import CANCELLED, Job
from intaglio.serve.schemas import (
    ImageData,
    ImageRequest,
    ImagesResponse,
    ModelList,
    ModelView,
)
from intaglio.serve.services import Shared

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.get("/models")
async def list_models(shared: Shared) -> ModelList:
    """The models that requests can name."""
    return ModelList(data=[model.view for model in shared.models])


@router.get("/models/{model:path}", responses=documented(404))
async def get_model(model: str, shared: Shared) -> ModelView:
    """One of them."""
    return shared.models.get(model).view


@router.post(
    "/images/generations",
    response_model=ImagesResponse,
    response_model_exclude_none=True,
    responses=documented(400, 404, 408, 413, 429, 500, 503, 504, 507),
)
async def generate_images(
    body: ImageRequest, request: Request, shared: Shared, client: Client
) -> ImagesResponse | JSONResponse:
    """Draws images and answers when they are there. A client that disconnects ends its run."""
    stored = body.response_format != "b64_json"
    job = shared.make_job(body, client, stored=stored)
    shared.scheduler.submit(job, deadline_of(None, shared.settings.limits))
    await _ended_or_gone(job, request, shared)
    if job.error:
        return error_response(job.error)  # not raised: that is for what is refused
    data = [ImageData(url=image_url(request, name)) for name in job.names]
    data += [ImageData(b64_json=base64.b64encode(png).decode()) for png in job.pngs]
    return ImagesResponse(created=int(time.time()), data=data)


async def _ended_or_gone(job: Job, request: Request, shared: Shared) -> None:
    """Waits for the job, and stops it if the client does not."""
    ended = asyncio.ensure_future(job.ended.wait())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        shared.scheduler.stop(job, CANCELLED)  # nothing if it has ended
    await ended


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def image_url(request: Request, name: str) -> str:
    """Where the client finds an image of the store."""
    return str(request.url_for("get_image", name=name))
