"""What a client is told when a request cannot be served, in the shape of OpenAI's API."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

import intaglio


class ErrorDetail(BaseModel):
    """One error.

    Attributes:
        message: one sentence: what is wrong and the way out.
        type: the kind of error, as OpenAI names kinds.
        param: the field that is wrong, if it is one.
        code: the error by a short name.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that ends with a status of 400 or above.

    `retry_after` is in seconds; it goes into the header of that name.
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
        """Pickled, it goes from a replica to whoever asked."""
        return ApiError.__new__, (ApiError, *self.args), self.__dict__

    @property
    def body(self) -> dict[str, Any]:
        return ErrorBody(error=self.detail).model_dump()


def said(message: str) -> str:
    """Pydantic's message as the end of a sentence."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


# What nobody foresaw.
BUG = ApiError(500, "internal_error", "the server made a mistake; its log says more")


def limit_error(param: str, message: str) -> ApiError:
    """A field that asks for more than the server gives."""
    return ApiError(400, "limit_exceeded", message, param=param)


def value_error(param: str | None, message: str) -> ApiError:
    """A field that cannot be what it is."""
    return ApiError(400, "invalid_value", message, param=param)


def run_error(error: intaglio.Error) -> ApiError:
    """What became of a run in the C++ library."""
    if isinstance(error, intaglio.UsageError):
        return value_error(None, str(error))
    if isinstance(error, intaglio.OutOfMemoryError):
        return ApiError(503, "out_of_memory", str(error), retry_after=10)
    return ApiError(500, "run_failed", str(error))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Entries of the OpenAPI page for answers with these statuses."""
    return {status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in statuses}


_MEANINGS = {
    400: "A field is wrong or above a limit; `param` names it.",
    401: "No API key, or a wrong one.",
    404: "There is no such thing.",
    408: "The body took too long to arrive.",
    413: "The body is above the limit.",
    429: "The queue is full; `Retry-After` says when to come back.",
    500: "The run failed.",
    503: "The server is stopping or out of memory; `Retry-After` says when to come back.",
    504: "The request did not end before its deadline.",
    507: "There is no room to store the image.",
}
