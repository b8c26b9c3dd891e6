"""Jobs: queued, watched, cancelled; and the images they leave."""

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

from intaglio.serve.admission import deadline_of
from intaglio.serve.auth import Client
from intaglio.serve.errors import ApiError, documented
from intaglio.serve.job import CANCELLED, Job
from intaglio.serve.openai import image_url
from intaglio.serve.schemas import JobRequest, JobView
from intaglio.serve.services import Shared

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
images = APIRouter(prefix="/v1/images", tags=["images"])


async def find_job(job_id: str, shared: Shared, client: Client) -> Job:
    """The job of that id. With API keys, only for the one that made it."""
    job = shared.find(job_id)
    if not job or (shared.settings.api_keys and job.client != client):
        message = (
            "there is no such job: its time is over, or the server was restarted and has forgotten"
            " it; send the request again"
        )
        raise ApiError(404, "job_not_found", message)
    return job


Found = Annotated[Job, Depends(find_job)]


@router.post("", status_code=202, responses=documented(400, 404, 408, 413, 429, 503))
async def create_job(body: JobRequest, request: Request, shared: Shared, client: Client) -> JobView:
    """Queues a job and answers at once."""
    deadline = deadline_of(body.deadline, shared.settings.limits)
    job = shared.make_job(body, client, stored=True, preview=body.preview)
    shared.scheduler.submit(job, deadline)
    shared.keep(job)
    return _view(job, request)


@router.get("/{job_id}", responses=documented(404))
async def get_job(job: Found, request: Request) -> JobView:
    """What a job has come to."""
    return _view(job, request)


@router.delete("/{job_id}", responses=documented(404))
async def cancel_job(job: Found, request: Request, shared: Shared) -> JobView:
    """Ends a job within a step, and answers when it has ended."""
    shared.scheduler.stop(job, CANCELLED)
    await job.ended.wait()
    return _view(job, request)


class _Events(StreamingResponse):
    """Ends its generator with the connection, not whenever it is collected. FastAPI's own way of
    sending events fails in most connections that end early."""

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
        int | None, Header(ge=0, description="go on behind this event")
    ] = None,
) -> _Events:
    """Server-sent events until the job has ended: queued, step, preview, then done or error."""
    after = -1 if last_event_id is None else last_event_id
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return _Events(_events(job, after, request), headers=headers)


async def _events(job: Job, after: int, request: Request) -> AsyncGenerator[bytes, None]:
    async with aclosing(job.follow(after)) as events:
        async for number, event, data in events:
            shown: dict[str, Any] = data
            if event == "done":
                shown = {**data, "images": [image_url(request, name) for name in data["images"]]}
            if event == "ping":
                yield KEEPALIVE_COMMENT
            else:
                yield format_sse_event(event=event, id=str(number), data_str=json.dumps(shown))
            await asyncio.sleep(0)  # others have their turn while many are sent at once


@images.get(
    "/{name}.png",
    response_class=FileResponse,
    responses={200: {"content": {"image/png": {}}}, **documented(404)},
)
async def get_image(
    name: Annotated[str, Path(description="as in a URL that the server gave")], shared: Shared
) -> FileResponse:
    """An image, by the URL that was given for it. Needs no API key: the name is one."""
    path = shared.store.find(name)
    if not path:
        raise ApiError(404, "image_not_found", "there is no such image, or its time is over")
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
