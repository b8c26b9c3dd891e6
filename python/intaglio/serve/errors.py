"""Errors that a client receives, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

import intaglio


class ErrorDetail(BaseModel):
    """One error.

    Attributes:
        message: one sentence that says what is wrong and how to correct it.
        type: the kind of error, by OpenAI's names.
        param: the field that is wrong, or None if no single field is.
        code: a short name of the error.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that reports an error."""

    error: ErrorDetail


_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is answered with a status of 400 or above.

    `retry_after` is the value of the header Retry-After, in seconds.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.detail = ErrorDetail(message=message, type=kind, param=param, code=code)

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, since a Ray replica sends its errors to the front process."""
        return ApiError.__new__, (ApiError, *self.args), self.__dict__

    @property
    def body(self) -> dict[str, Any]:
        return ErrorBody(error=self.detail).model_dump()


# The answer to an exception that the server does not expect.
INTERNAL_ERROR = ApiError(
    500, "internal_error", "the server failed unexpectedly: its log has the traceback"
)
CANCELLED = ApiError(409, "cancelled", "the job was cancelled")


def reason(pydantic_message: str) -> str:
    """Return pydantic's message in a form that can end a sentence."""
    text = pydantic_message.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def limit_error(param: str, message: str) -> ApiError:
    """Return the error for a field that exceeds a limit of the server."""
    return ApiError(400, "limit_exceeded", message, param=param)


def value_error(param: str | None, message: str) -> ApiError:
    """Return the error for a field whose value is invalid."""
    return ApiError(400, "invalid_value", message, param=param)


def run_error(error: intaglio.Error) -> ApiError:
    """Convert an error of the C++ library into one for the client."""
    if isinstance(error, intaglio.UsageError):
        return value_error(None, str(error))
    if isinstance(error, intaglio.OutOfMemoryError):
        return ApiError(503, "out_of_memory", str(error), retry_after=10)
    return ApiError(500, "run_failed", str(error))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the entries of the OpenAPI document for errors with these statuses."""
    return {status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in statuses}


_MEANINGS = {
    400: "A field is wrong or above a limit; `param` names it.",
    401: "The API key is missing or wrong.",
    404: "What the path names does not exist.",
    408: "The body took too long to arrive.",
    413: "The body is larger than the limit.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "The run failed.",
    503: "The server is stopping or out of memory; `Retry-After` says when to try again.",
    504: "The request did not finish before its deadline.",
    507: "The image could not be stored; the message says why.",
}
