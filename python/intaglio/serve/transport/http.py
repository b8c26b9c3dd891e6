"""Middleware that every HTTP request passes: limits on its body, and a line in the log."""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from intaglio.serve import logs


class BodyLimits:
    """Rejects requests whose body exceeds `size` bytes or does not arrive within `seconds`.

    `sizes` has the limits of paths that take larger bodies.
    """

    def __init__(self, app: ASGIApp, size: int, seconds: float, sizes: dict[str, int]) -> None:
        self._app, self._size, self._seconds, self._sizes = app, size, seconds, sizes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        limit = self._sizes.get(path, self._size)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        end: float | None = None
        size, complete = 0, False

        async def receive_body() -> Message:
            nonlocal end, size, complete
            if complete:
                return await receive()
            if int(announced) > limit:  # uvicorn has checked that it is a number
                raise self._too_large(limit)
            # Forms wait for their turn before anything reads them.
            end = end or asyncio.get_running_loop().time() + self._seconds
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                text = f"the body did not arrive within {self._seconds:g} seconds: send it again"
                raise HTTPException(408, text, {"Connection": "close"}) from None
            size += len(message.get("body", b""))
            if size > limit:
                raise self._too_large(limit)
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_body, send)

    def _too_large(self, limit: int) -> HTTPException:
        return HTTPException(413, f"the body exceeds {limit} bytes: send a shorter one")


class RequestLog:
    """Logs one line per request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        except Exception:
            status = status or 500  # an outer layer sends the answer
            raise
        finally:
            route = scope.get("route")
            logs.write(
                "request",
                method=scope["method"],
                # The route and not the URL, since whoever knows the name of an image can fetch it.
                path=route.path if route else None,
                status=status,
                client=scope["client"][0] if scope["client"] else None,
                seconds=round(time.monotonic() - began, 4),
            )
