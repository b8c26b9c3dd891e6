"""What every request goes through: the body's limits, a log line, and errors as OpenAI has them."""

from __future__ import annotations

import asyncio
import time
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from intaglio.serve import logs
from intaglio.serve.errors import BUG, ApiError, said
from intaglio.serve.schemas import GenerationRequest


class BodyLimits:
    """Ends requests whose body is above `size` bytes or does not arrive within `seconds`."""

    def __init__(self, app: ASGIApp, size: int, seconds: float) -> None:
        self._app, self._size, self._seconds = app, size, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        end = asyncio.get_running_loop().time() + self._seconds
        size, complete = 0, False

        async def receive_body() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()
            if int(announced) > self._size:  # uvicorn lets numbers through only
                raise self._too_large()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                text = f"the body did not arrive within {self._seconds:g} seconds: send it again"
                raise HTTPException(408, text, {"Connection": "close"}) from None
            size += len(message.get("body", b""))
            if size > self._size:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_body, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is above {self._size} bytes: send a shorter one")


class RequestLog:
    """A line for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception:
            status = status or 500  # it is answered further out
            raise
        finally:
            route = scope.get("route")
            logs.write(
                "request",
                method=scope["method"],
                path=route.path if route else None,  # not as asked: names of images are secret
                status=status,
                client=scope["client"][0] if scope["client"] else None,
                seconds=round(time.monotonic() - began, 4),
            )


_CODES = {404: "not_found", 405: "method_not_allowed", 408: "body_timeout", 413: "body_too_large"}


def error_response(error: ApiError) -> JSONResponse:
    """The answer that says it."""
    return JSONResponse(error.body, error.status, headers=error.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Every error in one shape; those that refuse a request are counted."""

    def answer(request: Request, error: ApiError) -> JSONResponse:
        request.app.state.metrics.rejections.labels(error.detail.code).inc()
        return error_response(error)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, errors: RequestValidationError) -> JSONResponse:
        return answer(request, _invalid(errors.errors()[0], request))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "invalid_request")
        headers, message = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            message = "there is nothing at this path: see /docs"
        elif error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(request))
            message = f"this path takes {headers['Allow']} only: see /docs"
        told = ApiError(error.status_code, code, message)
        told.headers = headers
        return answer(request, told)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return error_response(BUG)


def _methods(request: Request) -> list[str]:
    """Those that are taken at the request's path, by whichever route."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "POST")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]


# What diffusers calls fields that are far from it by their letters.
_DIFFUSERS = {"guidance_scale": "cfg_scale", "num_inference_steps": "steps"}


def _instead(name: str) -> str:
    """The way out for a field that there is not."""
    near = get_close_matches(name, GenerationRequest.model_fields, 1, 0.75)
    if name in _DIFFUSERS:
        near = [_DIFFUSERS[name]]
    return f"give {near[0]} instead" if near else "leave it out"


def _invalid(error: dict[str, Any], request: Request) -> ApiError:
    """The first thing that is wrong with a request's body or header."""
    # A name may be anything, even what no answer can be written with.
    path = [str(part)[:100].encode(errors="replace").decode() for part in error["loc"][1:]]
    if error["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {error['ctx']['error']}")
    if error["type"] == "extra_forbidden":
        message = f"there is no field {path[0]!r} here: {_instead(path[0])}"
        return ApiError(400, "unknown_field", message, param=path[0])
    what = said(error["msg"])
    if not path and "content-type" not in request.headers:
        message = "the header Content-Type is missing: send Content-Type: application/json"
        return ApiError(400, "invalid_value", message)
    if not path:
        message = f"the body does not fit: {what}; send a JSON object as application/json"
        return ApiError(400, "invalid_value", message)
    return ApiError(400, "invalid_value", f"{path[0]} does not fit: {what}", param=path[0])
