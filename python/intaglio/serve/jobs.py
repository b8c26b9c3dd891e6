"""Jobs: queued, watched, cancelled; and the images they leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from intaglio.serve.admission import deadline_of
from intaglio.serve.auth import Client
from intaglio.serve.errors import ApiError, documented
from intaglio.serve.job import CANCELLED, Job
from intaglio.serve.openai import image_url
from intaglio.serve.schemas import JobRequest, JobView
from intaglio.serve.services import Shared

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
images = APIRouter(prefix="/v1/images", tags=["images"])


def find_job(job_id: str, shared: Shared, client: Client) -> Job:
    """The job of that id. With API keys, only for the one that made it."""
    job = shared.jobs.get(job_id)
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


@router.get("/{job_id}/events", response_class=EventSourceResponse, responses=documented(400, 404))
async def follow_job(
    job: Found,
    request: Request,
    last_event_id: Annotated[
        int | None, Header(ge=0, description="go on behind this event")
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events until the job has ended: queued, step, preview, then done or error."""
    after = -1 if last_event_id is None else last_event_id
    async for number, event, data in job.follow(after):
        shown: dict[str, Any] = data
        if event == "done":
            shown = {**data, "images": [image_url(request, name) for name in data["images"]]}
        yield ServerSentEvent(event=event, id=str(number), data=shown)


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
