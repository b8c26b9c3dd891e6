"""Exception handlers, which give every error the form of OpenAI's API."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from intaglio.serve.api.schemas import GenerationRequest, values_without_effect
from intaglio.serve.errors import INTERNAL_ERROR, ApiError, reason

_CODES = {404: "not_found", 405: "method_not_allowed", 408: "body_timeout", 413: "body_too_large"}


def error_response(error: ApiError) -> JSONResponse:
    """Return the HTTP response for the error."""
    return JSONResponse(error.body, error.status, headers=error.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception in one form, and count the requests that are rejected."""

    def reject(request: Request, error: ApiError) -> JSONResponse:
        request.app.state.metrics.rejections.labels(error.detail.code).inc()
        return error_response(error)

    @app.exception_handler(ApiError)
    async def rejected(request: Request, error: ApiError) -> JSONResponse:
        return reject(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, errors: RequestValidationError) -> JSONResponse:
        return reject(request, _invalid(errors.errors()[0], request))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "invalid_request")
        headers, message = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            message = "there is nothing at this path: see /docs"
        elif error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed_methods(request))
            message = f"this path accepts {headers['Allow']} only: see /docs"
        elif message == _UNREADABLE:
            code = "invalid_json"
            message = (
                "the body cannot be read: send JSON in UTF-8 that is not compressed, nor nested"
                " deeply, and whose numbers have fewer than 4,300 digits"
            )
        converted = ApiError(error.status_code, code, message)
        converted.headers = headers
        return reject(request, converted)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return error_response(INTERNAL_ERROR)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods that some route accepts at the request's path."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "POST")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]


# FastAPI's sentence about a body for which Python's parser raises anything but its own error.
_UNREADABLE = "There was an error parsing the body"

# diffusers' names of fields whose spelling is too far from ours to be found by similarity.
_DIFFUSERS = {"guidance_scale": "cfg_scale", "num_inference_steps": "steps"}


def _suggestion(name: str) -> str:
    """Return what to do about an unknown field."""
    near = get_close_matches(name, GenerationRequest.model_fields, 1, 0.75)
    if name in _DIFFUSERS:
        near = [_DIFFUSERS[name]]
    return f"give {near[0]} instead" if near else "leave it out"


def _unknown_field(name: str) -> ApiError:
    """Return the error for a field, or for a value of one, that changes nothing here."""
    if taken := values_without_effect(name):
        values = " or ".join(map(json.dumps, taken))
        message = f"{name} cannot be chosen here: leave it out, or give {values}"
        return ApiError(400, "invalid_value", message, param=name)
    message = f"there is no field {name!r}: {_suggestion(name)}"
    return ApiError(400, "unknown_field", message, param=name)


def _invalid(error: dict[str, Any], request: Request) -> ApiError:
    """Convert pydantic's first error about a request's body or header."""
    # A client can choose any field name, even one that has no UTF-8 encoding.
    path = [str(part)[:100].encode(errors="replace").decode() for part in error["loc"][1:]]
    if error["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {error['ctx']['error']}")
    if error["type"] == "extra_forbidden":
        return _unknown_field(path[0])
    what = reason(error["msg"])
    if not path and "content-type" not in request.headers:
        message = "the header Content-Type is missing: send Content-Type: application/json"
        return ApiError(400, "invalid_value", message)
    if not path:
        message = f"the body is invalid: {what}; send a JSON object as application/json"
        return ApiError(400, "invalid_value", message)
    return ApiError(400, "invalid_value", f"{path[0]} is invalid: {what}", param=path[0])
