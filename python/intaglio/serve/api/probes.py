"""Routes for operating the server: probes and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from intaglio.serve.api.schemas import Health
from intaglio.serve.api.services import Shared

router = APIRouter(tags=["operation"])


@router.get("/healthz", response_model_exclude_none=True)
async def healthz() -> Health:
    """Answer if the process is alive."""
    return Health(status="ok")


_NOT_READY = "The server is stopping, or its device does not work; `reason` says why."


@router.get(
    "/readyz",
    response_model_exclude_none=True,
    responses={503: {"model": Health, "description": _NOT_READY}},
)
async def readyz(shared: Shared, response: Response) -> Health:
    """Say whether the server accepts requests."""
    if shared.queue.stopping:
        response.status_code = 503
        return Health(status="stopping")
    if reason := shared.problem():
        response.status_code = 503
        return Health(status="failed", reason=reason)
    return Health(status="ok")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(shared: Shared) -> Response:
    """Return the metrics for Prometheus."""
    return Response(shared.metrics.page(), media_type=CONTENT_TYPE_LATEST)
