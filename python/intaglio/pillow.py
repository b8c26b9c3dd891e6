"""Pillow's images as pixels, for the extension module, which makes one call for each picture."""

from __future__ import annotations

import io

from PIL import Image, ImageOps


def pixels_of(picture: object) -> tuple[int, int, bytes] | bytes | None:
    """Return width, height and RGB pixels of a Pillow image, as viewers show it.

    Returns a PNG file instead where Pillow's conversion to RGB would drop the transparency or cut
    16 bits off at 255, and None for what is no image of Pillow.
    """
    if not isinstance(picture, Image.Image):
        return None
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


def image_of(width: int, height: int, pixels: bytes) -> Image.Image:
    """Return the Pillow image with these RGB pixels."""
    return Image.frombytes("RGB", (width, height), pixels)
