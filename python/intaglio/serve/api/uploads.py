"""Forms with pictures, and the pictures, which are checked before they are decoded."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from intaglio import _core
from intaglio.pillow import pixels_of
from intaglio.serve.api.options import FILES
from intaglio.serve.api.schemas import EditRequest, is_text
from intaglio.serve.errors import ApiError, limit_error, value_error
from intaglio.serve.settings import Limits

Array = np.ndarray[Any, Any]
FORMATS = ("PNG", "JPEG", "WEBP")
_MOST_PARTS = 100  # of a form
# Each scan of a progressive JPEG passes over the whole picture, although a few bytes describe it.
# Encoders write about ten.
_MOST_SCANS = 100
_START_OF_SCAN = b"\xff\xda"  # which compressed data does not contain


def check_kind(request: Request) -> None:
    """Raise ApiError for a body that its head does not call a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise value_error(None, "the body is no form: send multipart/form-data with an image")


async def read_form(request: Request) -> tuple[EditRequest, dict[str, list[bytes]]]:
    """Return the fields of an edit and the content of its files by name. Raises ApiError.

    Lists come as OpenAI's client sends them, as several fields NAME[].
    """
    fields: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    files: dict[str, list[bytes]] = {}
    try:
        async with request.form(max_files=_MOST_PARTS, max_fields=_MOST_PARTS) as form:
            for key, value in form.multi_items():
                name = key.removesuffix("[]")
                if isinstance(value, UploadFile):
                    _refuse_file(name, files)
                    files.setdefault(name, []).append(await value.read())
                elif name != key:
                    _refuse_second(name, fields)
                    lists.setdefault(name, []).append(_parsed(name, value))
                else:
                    _refuse_second(name, fields.keys() | lists.keys())
                    fields[name] = _parsed(name, value)
    except HTTPException as error:
        if error.status_code != 400:  # of the limits on bodies
            raise
        raise _unreadable(error.detail) from None
    except UnicodeError:
        raise _unreadable("its charset is unknown") from None
    except ClientDisconnect:
        raise _unreadable("it ends early") from None
    for name in FILES:
        if name in fields or name in lists:
            message = f"{name} is text: send the picture as a file, in curl with -F {name}=@FILE"
            raise value_error(name, message)
    given = {name: value for name, value in (fields | lists).items() if name not in files}
    try:
        body = EditRequest.model_validate(given)
    except ValidationError as errors:
        found = [{**error, "loc": ("body", *error["loc"])} for error in errors.errors()]
        raise RequestValidationError(found) from None
    if "image" not in files:
        raise value_error("image", "image is missing: send a picture as a file")
    return body, files


def _unreadable(why: str) -> ApiError:
    message = f"the form cannot be read ({why}): send multipart/form-data"
    return ApiError(400, "invalid_form", message)


def _refuse_second(name: str, given: Container[str]) -> None:
    if name in given:
        message = f"{name} is given several times: give it once, or a list as fields {name}[]"
        raise value_error(name, message)


def _refuse_file(name: str, files: Container[str]) -> None:
    if name not in FILES:
        raise ApiError(
            400, "unknown_field", f"{name} is no file of an edit: leave it out", param=name
        )
    if name == "mask" and name in files:
        raise limit_error(name, "mask has several files, of which an edit takes one: send one")


def _parsed(name: str, value: str) -> Any:
    """Return the value that a field has in JSON; one that is none stays a text, and is refused."""
    if is_text(name):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


@dataclass(frozen=True)
class Pictures:
    """What an edit starts from: RGB, and the mask of a single one, L of the same size, white where
    it is drawn."""

    images: list[Image.Image]
    mask: Image.Image | None

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]

    @classmethod
    def of(cls, files: dict[str, list[bytes]], limits: Limits) -> Pictures:
        """Decode the files. Raises ApiError, which names the file."""
        images: list[Image.Image] = []
        for content in files["image"]:
            before = sum(picture.width * picture.height for picture in images)
            images.append(_decoded("image", content, limits, _rgb, before))
        if "mask" not in files:
            return cls(images, None)
        alpha = _decoded("mask", files["mask"][0], limits, _alpha)
        image = images[0]
        if alpha.size != image.size:
            sizes = "mask is {}x{} pixels but image is {}x{}".format(*alpha.size, *image.size)
            raise value_error("mask", f"{sizes}: send both in one size")
        if alpha.getextrema()[0]:
            message = "no part of mask is transparent, so that nothing would be drawn"
            raise value_error("mask", f"{message}: make a part of it fully transparent")
        return cls(images, alpha.point([255] + [0] * 255))

    @classmethod
    def of_arrays(cls, image: Array | list[Array], mask: Array | None = None) -> Pictures:
        """Return the pictures of which `options` returned the arrays."""
        images = image if isinstance(image, list) else [image]
        read = [Image.fromarray(one) for one in images]
        return cls(read, None if mask is None else Image.fromarray(mask))

    def options(self, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Return keywords of `generate`, scaled to a width and height if they are given.

        diffusers' VaeImageProcessor scales pictures so.
        """

        def array(picture: Image.Image) -> Array:
            return np.asarray(picture.resize(size, Image.Resampling.LANCZOS) if size else picture)

        images = [array(one) for one in self.images]
        options: dict[str, Any] = {"image": images if len(images) > 1 else images[0]}
        return options | ({"mask": array(self.mask)} if self.mask else {})


def _decoded(
    name: str,
    content: bytes,
    limits: Limits,
    read: Callable[[Image.Image], Image.Image],
    before: int = 0,
) -> Image.Image:
    """Return what `read` makes of the picture in a file.

    `before` is the number of pixels of earlier files of that name.
    """
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)  # which reads its head only
        pixels = picture.width * picture.height
        if before + pixels > limits.upload_pixels:
            size = f"{picture.width}x{picture.height}"
            rest = f", and the files before it have {before}" if before else ""
            message = f"{name} is {size} pixels{rest}: send up to {limits.upload_pixels} in all"
            raise limit_error(name, message)
        scans = content.count(_START_OF_SCAN)
        if isinstance(picture, JpegImageFile) and scans > _MOST_SCANS:
            message = f"{name} has {scans} scans: send a JPEG with {_MOST_SCANS} or fewer, or a PNG"
            raise limit_error(name, message)
        picture.load()
        return read(picture)
    except (ApiError, MemoryError):
        raise
    except Exception:  # Pillow raises errors of many kinds, and for EXIF others than for pixels
        message = f"{name} cannot be read: send a whole PNG, JPEG or WebP file"
        raise value_error(name, message) from None


def _alpha(picture: Image.Image) -> Image.Image:
    """Return the opacity of a picture, as viewers show it."""
    return ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A")


def _rgb(picture: Image.Image) -> Image.Image:
    """Return the picture as the library reads it."""
    read = pixels_of(picture)
    if isinstance(read, bytes):  # transparent, or 16 bits deep
        return _core.to_images(_core.from_image(picture))[0]
    width, height, pixels = read
    return Image.frombytes("RGB", (width, height), pixels)
