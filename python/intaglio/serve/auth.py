"""Who asks."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from intaglio import InputError
from intaglio.serve.errors import ApiError


class ApiKeys:
    """The keys that are let in."""

    def __init__(self, path: Path, setting: str) -> None:
        """Reads a file with a key a line; empty lines and those that begin with # do not count.

        Errors call it by the `setting` that it was given as.
        Raises InputError if it cannot be read or has no key.
        """
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise InputError(f"cannot read {setting}, {path}: {error.strerror}") from None
        # As headers are stripped: as text.
        stripped = [line.decode("latin-1").strip().encode("latin-1") for line in lines]
        self._keys = [line for line in stripped if line and not line.startswith(b"#")]
        if not self._keys:
            raise InputError(f"{setting}, {path}, holds no key: write one a line")

    def find(self, given: str) -> int | None:
        """The key's number in the file, from 1. Takes as long for any key of the same length."""
        bytes_given = given.encode("latin-1")  # as headers are decoded
        matches = [hmac.compare_digest(bytes_given, key) for key in self._keys]
        return matches.index(True) + 1 if any(matches) else None


_BEARER = HTTPBearer(auto_error=False, description="A key of the server's --api-keys file.")


async def require_key(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> None:
    """Refuses a request without a key that we know."""
    number = request.app.state.keys.find(given.credentials) if given else None
    if number is None:
        missing = "the API key is wrong" if given else "an API key is missing"
        message = f"{missing}: send the header Authorization: Bearer KEY"
        error = ApiError(401, "invalid_api_key", message)
        error.headers["WWW-Authenticate"] = "Bearer"
        raise error
    request.state.client = f"key {number}"


async def client(request: Request) -> str:
    """Whose turn a request takes: the key's, or without keys the address's."""
    address = request.client.host if request.client else "local"
    return str(getattr(request.state, "client", address))


Client = Annotated[str, Depends(client)]
