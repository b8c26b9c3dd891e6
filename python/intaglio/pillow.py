"""Pictures as pixels, for the extension module, which makes one call for each picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from intaglio._core import InputError


def pixels_of(picture: object) -> tuple[int, int, bytes] | bytes:
    """Return width, height and RGB pixels of a Pillow image, as viewers show it, or of an array.

    Returns a PNG file instead where Pillow's conversion to RGB would drop the transparency or cut
    16 bits off at 255. Raises InputError for what is no picture.
    """
    if not isinstance(picture, Image.Image):
        return _pixels_of_array(picture)
    # A camera stores the pixels as its sensor has them, and in EXIF how they are to be turned.
    upright = ImageOps.exif_transpose(picture)
    deep = upright.mode.startswith("I")
    transparent = upright.mode in {"RGBA", "LA", "PA", "RGBa", "La"}
    if not deep and not transparent and "transparency" not in upright.info:
        rgb = upright.convert("RGB")
        return rgb.width, rgb.height, rgb.tobytes()
    plain = upright.convert("I").convert("I;16") if deep else upright.convert("RGBA")
    file = io.BytesIO()
    plain.save(file, "PNG", compress_level=0)
    return file.getvalue()


def _pixels_of_array(picture: object) -> tuple[int, int, bytes]:
    """Return width, height and RGB pixels of a uint8 array [H, W] or [H, W, 3] in any order."""
    what = type(picture).__name__
    if hasattr(picture, "shape"):
        array = np.asarray(picture)
        if array.dtype == np.uint8 and array.ndim == 2:
            array = np.stack([array] * 3, axis=-1)
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
            return array.shape[1], array.shape[0], array.tobytes()
        what = f"{array.dtype} {list(array.shape)}"
    raise InputError(f"a picture is a PIL image or a uint8 array [H, W] or [H, W, 3], not {what}")


def image_of(width: int, height: int, pixels: bytes) -> Image.Image:
    """Return the Pillow image with these RGB pixels."""
    return Image.frombytes("RGB", (width, height), pixels)
