"""API keys, and the client that a request belongs to."""

from __future__ import annotations

import codecs
import hmac
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from intaglio import InputError
from intaglio.serve.errors import ApiError


class ApiKeys:
    """The API keys that the server accepts."""

    def __init__(self, path: Path, setting: str) -> None:
        """Read a file with one key per line; empty lines and lines that start with # are ignored.

        `setting` is how the user gave the path, for error messages.
        Raises InputError if the file cannot be read or has no key.
        """
        try:
            text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        except OSError as error:
            raise InputError(f"cannot read {setting}, {path}: {error.strerror}") from None
        if b"\0" in text:
            raise InputError(f"{setting}, {path}, is not UTF-8: save it as UTF-8")
        # Strip the same characters that HTTP strips from a header, which is Latin-1 text.
        stripped = [line.decode("latin-1").strip().encode("latin-1") for line in text.splitlines()]
        self._keys = [line for line in stripped if line and not line.startswith(b"#")]
        if not self._keys:
            raise InputError(f"{setting}, {path}, has no key: write one key per line")

    def find(self, given: str) -> int | None:
        """Return the number of the key in the file, counted from 1, or None if it is unknown.

        The time depends on the length of the key alone.
        """
        bytes_given = given.encode("latin-1")  # the encoding with which headers are decoded
        matches = [hmac.compare_digest(bytes_given, key) for key in self._keys]
        return matches.index(True) + 1 if any(matches) else None


_BEARER = HTTPBearer(auto_error=False, description="A key of the server's --api-keys file.")


async def require_key(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> None:
    """Reject a request that has no valid API key."""
    number = request.app.state.keys.find(given.credentials) if given else None
    if number is None:
        problem = "the API key is wrong" if given else "the API key is missing"
        message = f"{problem}: send the header Authorization: Bearer KEY"
        error = ApiError(401, "invalid_api_key", message)
        error.headers["WWW-Authenticate"] = "Bearer"
        raise error
    request.state.client = f"key {number}"


async def client(request: Request) -> str:
    """Return the name of the client for fair queueing: its API key, or its address without keys."""
    address = request.client.host if request.client else "local"
    return str(getattr(request.state, "client", address))


Client = Annotated[str, Depends(client)]
