"""Uvicorn's connections, with an end to those that never say what they want."""

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
from intaglio.serve.settings import Settings

# Seconds that answers have to reach slow readers once everything has run.
LAST_BYTES = 5

_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def _full() -> bytes:
    error = ApiError(
        503, "connections_full", "too many connections are open: come back later", retry_after=1
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


_FULL = _full()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; 0 takes a free port. Raises UnavailableError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on --host {host} --port {port}: {error.strerror or error}; give others"
        ) from None
    # Connections take it over. asyncio sets it itself, but not on sockets that were made like this;
    # without it every answer waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs `app`; a request's head has as long to arrive as its body."""

    class Connection(_Connection):
        seconds = settings.limits.body_seconds
        most = settings.limits.connections

    return uvicorn.Config(
        app,
        http=Connection,
        log_config=None,
        access_log=False,
        forwarded_allow_ips=list(settings.proxies),
        timeout_graceful_shutdown=LAST_BYTES,
    )


class _Connection(H11Protocol):
    """Ends a connection that is one too many, one whose request's head is not there in time, and
    one that is answered and does not send the rest of its body. Uvicorn itself ends those that are
    idle after an answer, and `BodyLimits` those whose body is awaited and does not arrive."""

    seconds: float
    most: int

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:  # uvicorn's own limit would refuse all of them
            self._close(_FULL)
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_early():
            # Not at once: what is still on its way would have the answer thrown away.
            self._unwatch()
            self._late = self.loop.call_later(self.seconds, self.transport.close)

    def _is_early(self) -> bool:
        """Whether it is answered, and its body is not there yet."""
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE

    def _watch(self) -> None:
        """Gives the head that is awaited its time, from its first byte."""
        if self._is_early():
            return
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif not self._late:
            self._late = self.loop.call_later(self.seconds, self._close, _LATE)

    def _unwatch(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _close(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()
