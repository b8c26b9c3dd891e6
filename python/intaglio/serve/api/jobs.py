"""Routes of jobs, their events, and the images that are fetched by URL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from intaglio.serve.api.admission import deadline_of
from intaglio.serve.api.openai import image_url
from intaglio.serve.api.schemas import JobRequest, JobView
from intaglio.serve.api.services import Shared
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import CANCELLED, ApiError, documented
from intaglio.serve.transport.auth import Client

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
images = APIRouter(prefix="/v1/images", tags=["images"])


async def find_job(job_id: str, shared: Shared, client: Client) -> Job:
    """Return the job with that id. With API keys, only the key that created it finds it."""
    job = shared.find(job_id)
    if not job or (shared.settings.api_keys and job.client != client):
        message = (
            "there is no such job: it has expired, or the server was restarted and has forgotten"
            " it; send the request again"
        )
        raise ApiError(404, "job_not_found", message)
    return job


Found = Annotated[Job, Depends(find_job)]


@router.post("", status_code=202, responses=documented(400, 404, 408, 413, 429, 503))
async def create_job(body: JobRequest, request: Request, shared: Shared, client: Client) -> JobView:
    """Queue a job and answer at once."""
    deadline = deadline_of(body.deadline, shared.settings.limits)
    job = shared.make_job(body, client, stored=True, preview=body.preview)
    shared.queue.submit(job, deadline)
    shared.keep(job)
    return _view(job, request)


@router.get("/{job_id}", responses=documented(404))
async def get_job(job: Found, request: Request) -> JobView:
    """Return the state of a job."""
    return _view(job, request)


@router.delete("/{job_id}", responses=documented(404))
async def cancel_job(job: Found, request: Request, shared: Shared) -> JobView:
    """End a job within a step, and answer when it has ended."""
    shared.queue.stop(job, CANCELLED)
    await job.ended.wait()
    return _view(job, request)


class _Events(StreamingResponse):
    """Closes its generator when the connection ends, not when it is garbage-collected.

    FastAPI's own responses with events fail on most connections that end early.
    """

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with aclosing(self.body_iterator):
            await super().__call__(scope, receive, send)


_EVENT = {
    "type": "object",
    "properties": {
        "data": {"type": "string"},
        "event": {"type": "string"},
        "id": {"type": "string"},
        "retry": {"type": "integer", "minimum": 0},
    },
}


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"itemSchema": _EVENT}}},
        **documented(400, 404),
    },
)
async def follow_job(
    job: Found,
    request: Request,
    last_event_id: Annotated[
        int | None, Header(ge=0, description="continue after this event")
    ] = None,
) -> _Events:
    """Send server-sent events until the job ends: queued, step, preview, then done or error."""
    after = -1 if last_event_id is None else last_event_id
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return _Events(_events(job, after, request), headers=headers)


async def _events(job: Job, after: int, request: Request) -> AsyncGenerator[bytes, None]:
    if request.method == "HEAD":
        return
    async with aclosing(job.follow(after)) as events:
        async for number, event, data in events:
            shown: dict[str, Any] = data
            if event == "done":
                shown = {**data, "images": [image_url(request, name) for name in data["images"]]}
            if event == "ping":
                yield KEEPALIVE_COMMENT
            else:
                yield format_sse_event(event=event, id=str(number), data_str=json.dumps(shown))
            await asyncio.sleep(0)  # let other requests run while many events are sent


@images.get(
    "/{name}.png",
    response_class=FileResponse,
    responses={200: {"content": {"image/png": {}}}, **documented(404)},
)
async def get_image(
    name: Annotated[str, Path(description="the name in a URL that the server returned")],
    shared: Shared,
) -> FileResponse:
    """Return an image by its URL. No API key is required, since the name is secret."""
    path = shared.store.find(name)
    if not path:
        raise ApiError(404, "image_not_found", "there is no such image, or it has expired")
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private"})


def _view(job: Job, request: Request) -> JobView:
    return JobView(
        id=job.id,
        model=job.admitted.model.name,
        created=int(job.created),
        status=job.status,
        position=job.position if job.status == "queued" else None,
        step=job.step,
        steps=job.steps,
        sigma=job.sigma,
        images=[image_url(request, name) for name in job.names],
        notes=job.notes,
        error=job.error.detail if job.error else None,
        timings=job.timings,
        request=job.admitted.fields,
    )
