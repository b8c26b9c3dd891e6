"""Images as PNG, and the folder of those that are fetched by URL."""

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
# Seconds after which half an image is taken for that of a server that was killed.
_WRITING = 60


def encode_png(image: Image, texts: dict[str, str]) -> bytes:
    """The file's bytes, with `texts` in it as `intaglio generate -o` writes them."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """The image as a URL that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


class ImageStore:
    """A folder of images under names that cannot be guessed, each there for `seconds`."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Raises InputError if the folder cannot be made."""
        self.folder, self._seconds = folder, seconds
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot use the images folder {folder}: {error.strerror}") from None

    def write(self, png: bytes) -> str:
        """Stores an image, whole or not at all. Returns its name. Raises ApiError (507)."""
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
                f"the image could not be stored: {error.strerror}; free room on the server, or ask"
                " /v1/images/generations for response_format b64_json",
            ) from None
        return name

    def find(self, name: str) -> Path | None:
        """The file of that name; None if there is none or its time is over."""
        path = self.folder / f"{name}.png"
        if not _NAME.fullmatch(name) or _age(path) > self._seconds:
            return None
        return path

    def expire(self) -> None:
        """Removes those whose time is over. Other servers may share the folder."""
        for suffix, seconds in ((".png", self._seconds), (".part", _WRITING)):
            for path in self.folder.glob(f"*{suffix}"):
                if _NAME.fullmatch(path.stem) and _age(path) > seconds:
                    path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since it was written; infinite if it is not there."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf
