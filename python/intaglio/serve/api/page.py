"""The page at /, and the headers that restrict what browsers let it do."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

FOLDER = Path(__file__).with_name("page")
# Some systems give JavaScript a type that browsers reject for modules.
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI, folder: Path = FOLDER) -> None:
    """Serve each file of `folder` under /, and index.html at / as well."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            _add_file(app, f"/{path.relative_to(folder)}", path)
    if (folder / "index.html").exists():
        _add_file(app, "/", folder / "index.html")


def _add_file(app: FastAPI, url: str, path: Path) -> None:
    guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"

    async def serve_file() -> FileResponse:
        return FileResponse(path, media_type=_TYPES.get(path.suffix, guessed), headers=_HEADERS)

    app.add_api_route(url, serve_file, methods=["GET", "HEAD"], include_in_schema=False)
