"""PNG files, and the folder of images that are fetched by URL."""

from __future__ import annotations

import base64
import io
import math
import re
import secrets
import time
from pathlib import Path

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from intaglio import InputError
from intaglio.serve.errors import ApiError

_NAME = re.compile(r"[0-9a-f]{32}")
# Seconds after which an unfinished file is removed, since the server that wrote it was killed.
_UNFINISHED_SECONDS = 60


def encode_png(image: Image, texts: dict[str, str]) -> bytes:
    """Return a PNG file with `texts` as metadata, as `intaglio generate -o` writes it."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """Return a data URL of the image."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


class ImageStore:
    """A folder of images whose names cannot be guessed. Each image expires after `seconds`."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Create the folder if necessary. Raises InputError if that is not possible."""
        self.folder, self._seconds = folder, seconds
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot use the images folder {folder}: {error.strerror}") from None

    def write(self, png: bytes) -> str:
        """Store an image as a whole or not at all, and return its name. Raises ApiError (507)."""
        name = secrets.token_hex(16)
        part = self.folder / f"{name}.part"
        try:
            part.write_bytes(png)
            part.replace(self.folder / f"{name}.png")
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ApiError(
                507,
                "image_not_stored",
                f"the image could not be stored: {error.strerror}; free disk space on the server,"
                " or ask /v1/images/generations for response_format b64_json",
            ) from None
        return name

    def find(self, name: str) -> Path | None:
        """Return the image's file, or None if there is no such image or it has expired."""
        path = self.folder / f"{name}.png"
        if not _NAME.fullmatch(name) or _age(path) > self._seconds:
            return None
        return path

    def expire(self) -> None:
        """Remove expired images, of this server and of others that share the folder."""
        for suffix, seconds in ((".png", self._seconds), (".part", _UNFINISHED_SECONDS)):
            for path in self.folder.glob(f"*{suffix}"):
                if _NAME.fullmatch(path.stem) and _age(path) > seconds:
                    path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Return the seconds since the file was written; infinity if it does not exist."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf
