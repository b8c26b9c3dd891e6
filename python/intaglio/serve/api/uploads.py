"""Forms with pictures, and the pictures, which are checked before they are decoded."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from PIL import Image, ImageOps
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from intaglio import _core
from intaglio.pillow import pixels_of
from intaglio.serve.api.schemas import EditRequest, is_text
from intaglio.serve.errors import ApiError, limit_error, value_error
from intaglio.serve.settings import Limits

Array = np.ndarray[Any, Any]
FORMATS = ("PNG", "JPEG", "WEBP")
_FILES = ("image", "mask")
_MOST_PARTS = 100  # of a form


async def read_form(request: Request) -> tuple[EditRequest, dict[str, bytes]]:
    """Return the fields of an edit and the content of its files. Raises ApiError.

    Lists come as OpenAI's client sends them, as several fields NAME[].
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise value_error(None, "the body is no form: send multipart/form-data with an image")
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    try:
        async with request.form(max_files=_MOST_PARTS, max_fields=_MOST_PARTS) as form:
            for key, value in form.multi_items():
                name = key.removesuffix("[]")
                if isinstance(value, UploadFile):
                    _refuse_file(name, files)
                    files[name] = await value.read()
                elif name != key:
                    fields.setdefault(name, []).append(_parsed(name, value))
                else:
                    fields[name] = _parsed(name, value)
    except HTTPException as error:
        if error.status_code != 400:  # of the limits on bodies
            raise
        message = f"the form cannot be read ({error.detail}): send multipart/form-data"
        raise ApiError(400, "invalid_form", message) from None
    try:
        body = EditRequest.model_validate(
            {name: v for name, v in fields.items() if name not in files}
        )
    except ValidationError as errors:
        found = [{**error, "loc": ("body", *error["loc"])} for error in errors.errors()]
        raise RequestValidationError(found) from None
    if "image" not in files:
        raise value_error("image", "image is missing: send a picture as a file")
    return body, files


def _refuse_file(name: str, files: dict[str, bytes]) -> None:
    if name not in _FILES:
        raise ApiError(
            400, "unknown_field", f"{name} is no file of an edit: leave it out", param=name
        )
    if name in files:
        raise limit_error(name, f"{name} has several files, of which an edit takes one: send one")


def _parsed(name: str, value: str) -> Any:
    """Return the value that a field has in JSON; one that is none stays a text, and is refused."""
    if is_text(name):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


@dataclass(frozen=True)
class Pictures:
    """What an edit starts from: RGB, and its mask, L of the same size, white where it is drawn."""

    image: Image.Image
    mask: Image.Image | None

    @classmethod
    def of(cls, files: dict[str, bytes], limits: Limits) -> Pictures:
        """Decode the files. Raises ApiError, which names the file."""
        image = _rgb(_decoded("image", files["image"], limits))
        if "mask" not in files:
            return cls(image, None)
        given = ImageOps.exif_transpose(_decoded("mask", files["mask"], limits))
        if not given.has_transparency_data:
            message = (
                "mask is not transparent anywhere, and its transparent parts are drawn: add some"
            )
            raise value_error("mask", message)
        alpha = given.convert("RGBA").getchannel("A")
        if alpha.size != image.size:
            sizes = "mask is {}x{} pixels but image is {}x{}".format(*alpha.size, *image.size)
            raise value_error("mask", f"{sizes}: send both in one size")
        return cls(image, alpha.point([255] + [0] * 255))

    @classmethod
    def of_arrays(cls, image: Array, mask: Array | None = None) -> Pictures:
        """Return the pictures of which `options` returned the arrays."""
        return cls(Image.fromarray(image), None if mask is None else Image.fromarray(mask))

    def options(self, height: int, width: int) -> dict[str, Any]:
        """Return keywords of `generate`, scaled as diffusers' VaeImageProcessor scales pictures."""
        pictures = {"image": self.image} | ({"mask": self.mask} if self.mask else {})
        return {
            name: np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
            for name, picture in pictures.items()
        }


def _decoded(name: str, content: bytes, limits: Limits) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)  # which reads its head only
        pixels = picture.width * picture.height
        if pixels > limits.upload_pixels:
            size = f"{picture.width}x{picture.height}"
            message = f"{name} is {size} pixels: send up to {limits.upload_pixels} in all"
            raise limit_error(name, message)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        message = f"{name} cannot be read: send a whole PNG, JPEG or WebP file"
        raise value_error(name, message) from None
    return picture


def _rgb(picture: Image.Image) -> Image.Image:
    """Return the picture as the library reads it."""
    read = pixels_of(picture)
    if isinstance(read, bytes):  # transparent, or 16 bits deep
        return _core.to_images(_core.from_image(picture))[0]
    width, height, pixels = read
    return Image.frombytes("RGB", (width, height), pixels)
