"""Routes of OpenAI's API."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from intaglio.serve.api.admission import deadline_of
from intaglio.serve.api.error_handlers import error_response
from intaglio.serve.api.model_views import model_view
from intaglio.serve.api.schemas import (
    EditRequest,
    ImageData,
    ImageRequest,
    ImagesResponse,
    ModelList,
    ModelView,
)
from intaglio.serve.api.services import Services, Shared
from intaglio.serve.api.uploads import Pictures, check_kind, read_form
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import CANCELLED, ApiError, documented
from intaglio.serve.transport.auth import Client

router = APIRouter(prefix="/v1", tags=["OpenAI"])
EDITS = "/v1/images/edits"
_FILES = {
    "image": "PNG, JPEG or WebP; without `mask` and `strength`, a model with references takes it as"
    " one, and several as `image[]`; otherwise it is scaled to `size`, or to whole cells of its own"
    " size, without `mask_padding`",
    "mask": "PNG or WebP of the same size, whose transparent parts are drawn anew",
}


def _form() -> dict[str, Any]:
    """Return the schema of an edit. Forms have a list as several fields NAME[]."""
    schema = EditRequest.model_json_schema()
    for name, text in _FILES.items():
        schema["properties"][name] = {"type": "string", "format": "binary", "description": text}
    file = {"type": "string", "format": "binary"}
    text = "several references, as OpenAI's client sends them, in place of `image`"
    schema["properties"]["image[]"] = {"type": "array", "items": file, "description": text}
    return {name: value for name, value in schema.items() if name != "examples"} | {
        "anyOf": [{"required": ["image"]}, {"required": ["image[]"]}]
    }


@router.get("/models")
async def list_models(shared: Shared) -> ModelList:
    """Return the models that requests can name."""
    return ModelList(data=[model_view(model) for model in shared.models])


@router.get("/models/{model:path}", responses=documented(404))
async def get_model(model: str, shared: Shared) -> ModelView:
    """Return one model."""
    return model_view(shared.models.get(model))


@router.post(
    "/images/generations",
    response_model=ImagesResponse,
    response_model_exclude_none=True,
    responses=documented(400, 404, 408, 413, 429, 500, 503, 504, 507),
)
async def generate_images(
    body: ImageRequest, request: Request, shared: Shared, client: Client
) -> ImagesResponse | JSONResponse:
    """Draw images and answer when they are finished. If the client disconnects, the run ends."""
    job = shared.make_job(body, client, stored=body.response_format != "b64_json")
    return await _draw(job, request, shared)


@router.post(
    "/images/edits",
    response_model=ImagesResponse,
    response_model_exclude_none=True,
    responses=documented(400, 404, 408, 413, 429, 500, 503, 504, 507),
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _form()}}}
    },
)
async def edit_image(
    request: Request, shared: Shared, client: Client
) -> ImagesResponse | JSONResponse:
    """Draw an image anew, or what is transparent in its mask, or from it as a reference."""
    check_kind(request)
    shared.queue.check_room(client)
    async with shared.forms:
        job = await _read_edit(request, shared, client)
    return await _draw(job, request, shared)


async def _read_edit(request: Request, shared: Services, client: str) -> Job:
    """Return the job of an edit, which holds no more of the form than its pictures."""
    body, files = await read_form(request)

    def make() -> Job:
        pictures = Pictures.of(files, shared.settings.limits)
        stored = body.response_format != "b64_json"
        return shared.make_job(body, client, stored=stored, pictures=pictures)

    async with shared.decoding:
        return await asyncio.to_thread(make)


async def _draw(job: Job, request: Request, shared: Shared) -> ImagesResponse | JSONResponse:
    shared.queue.submit(job, deadline_of(None, shared.settings.limits))
    await _wait_for_end(job, request, shared)
    if job.error:
        return error_response(job.error)  # not raised, since it would count as a rejection
    data = [ImageData(url=image_url(request, name)) for name in job.names]
    data += [ImageData(b64_json=base64.b64encode(png).decode()) for png in job.pngs]
    return ImagesResponse(created=int(time.time()), data=data)


@router.post("/images/variations", include_in_schema=False)
async def vary_image() -> None:
    """Refuse OpenAI's requests for variations, which have no prompt. Raises ApiError."""
    message = (
        "this server draws from a prompt, at /v1/images/generations and /v1/images/edits: it does"
        " not draw variations of images"
    )
    raise ApiError(404, "not_supported", message)


async def _wait_for_end(job: Job, request: Request, shared: Shared) -> None:
    """Wait until the job ends, and stop it if the client disconnects."""
    ended = asyncio.ensure_future(job.ended.wait())
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({ended, disconnected}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnected.cancel()
        shared.queue.stop(job, CANCELLED)  # has no effect if the job has ended
    await ended


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def image_url(request: Request, name: str) -> str:
    """Return the URL of an image in the store."""
    return str(request.url_for("get_image", name=name))
