"""The address under which clients reach the server through a reverse proxy.

Both middlewares change the request's scope, from which Starlette makes all URLs.
"""

from __future__ import annotations

from pydantic import HttpUrl
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


class ProxyHeaders(ProxyHeadersMiddleware):
    """Uvicorn's middleware, which takes client and scheme from a trusted proxy's headers, and the
    host and the path prefix as well.

    A proxy names in X-Forwarded-Prefix what it removed from the start of the path.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        # The client is still the proxy; uvicorn's own part replaces it.
        if scope["type"] == "http" and scope["client"] and scope["client"][0] in self.trusted_hosts:
            headers = Headers(scope=scope)
            # Each proxy on the way adds to the list, and the first one is what the client asked.
            _set_host(scope, headers.get("X-Forwarded-Host", "").split(",")[0].strip())
            prefixes = ",".join(headers.getlist("X-Forwarded-Prefix")).split(",")
            _add_prefix(scope, "/".join(prefix.strip(" /") for prefix in prefixes))
        await super().__call__(scope, receive, send)  # type: ignore[arg-type]


class PublicUrl:
    """Answers every request as if it had been sent to the public URL."""

    def __init__(self, app: ASGIApp, url: HttpUrl) -> None:
        self._app, self._url = app, url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = scope["path"].removeprefix(scope["root_path"])
            scope["root_path"] = ""
            scope["scheme"] = self._url.scheme
            default = {"http": 80, "https": 443}[self._url.scheme]
            port = "" if self._url.port == default else f":{self._url.port}"
            _set_host(scope, f"{self._url.host}{port}")
            _add_prefix(scope, self._url.path or "")
        await self._app(scope, receive, send)


def _set_host(scope: Scope, host: str) -> None:
    if host:
        MutableHeaders(scope=scope)["Host"] = host


def _add_prefix(scope: Scope, prefix: str) -> None:
    """Add what a proxy removed to the path, where ASGI expects the root path to be."""
    if prefix := prefix.strip("/"):
        scope["root_path"] = f"/{prefix}{scope['root_path']}"
        scope["path"] = f"/{prefix}{scope['path']}"
