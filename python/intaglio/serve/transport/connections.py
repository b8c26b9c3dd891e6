"""Uvicorn's connections, with limits on their number and on the time of a request's head."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from intaglio import UnavailableError
from intaglio.serve.errors import ApiError
from intaglio.serve.settings import ServerSettings
from intaglio.serve.transport.addresses import ProxyHeaders

# Seconds that answers have to reach slow readers after all requests have finished.
LAST_BYTES = 5

_TIMEOUT_ANSWER = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def _full_answer() -> bytes:
    error = ApiError(
        503, "connections_full", "too many connections are open: try again later", retry_after=1
    )
    body = json.dumps(error.body).encode()
    headers = {
        **error.headers,
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    lines = ["HTTP/1.1 503 Service Unavailable", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


_FULL_ANSWER = _full_answer()


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 selects a free one. Raises UnavailableError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on --host {host} --port {port}: {error.strerror or error};"
            " give another address or port"
        ) from None
    # Accepted connections inherit the option. asyncio sets it on the sockets that it opens itself;
    # without it every answer waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def uvicorn_config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """Return uvicorn's configuration; head and body of a request have the same time to arrive."""

    class Connection(_Connection):
        seconds = settings.limits.body_seconds
        limit = settings.limits.connections

    return uvicorn.Config(
        ProxyHeaders(app, list(settings.proxies)),  # type: ignore[arg-type]
        http=Connection,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]  # fractions work too
        timeout_graceful_shutdown=LAST_BYTES,
    )


class _Connection(H11Protocol):
    """Closes a connection above the limit, one whose head does not arrive in time, and one that has
    its answer but does not send the rest of its body.

    Uvicorn itself closes connections that are idle after an answer. `BodyLimits` answers requests
    whose body does not arrive while the application waits for it.
    """

    seconds: float
    limit: int

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limit:  # uvicorn's own limit would reject every request
            self._close(_FULL_ANSWER)
        else:
            self._update_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._answered_early():
            # If the connection closed now, the rest of the body would make the client's system
            # discard the answer.
            self._stop_timer()
            self._timer = self.loop.call_later(self.seconds, self.transport.close)

    def _answered_early(self) -> bool:
        """Return whether the request was answered before its whole body arrived."""
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE

    def _update_timer(self) -> None:
        """Start the timer when a head is expected, and stop it when the head is complete."""
        if self._answered_early():
            return
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif not self._timer:
            self._timer = self.loop.call_later(self.seconds, self._close, _TIMEOUT_ANSWER)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _close(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()
