"""Write an image in the format that the file's ending names, with its text entries inside."""

from __future__ import annotations

import io
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio import _core

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

# Formats of Pillow by the endings of their files. A PNG is written as the command writes it.
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_QUALITY = 95
_MOST_EXIF = 65533  # bytes in a JPEG


def check_ending(path: Path) -> None:
    """Raise UsageError for a file that would be in another format than its ending says."""
    ending = path.suffix.lower()
    if ending not in {"", ".png", *_FORMATS}:
        raise _core.UsageError(
            f"{path}: images are written as PNG, JPEG or WebP; end the name in .png, .jpg or .webp"
        )


def write_image(path: Path, image: Image, texts: dict[str, str]) -> None:
    """Write the image, as PNG if the file has no ending. Raises InputError naming the file.

    `texts` are those of `Generation.texts`. Without any, the file has no metadata: that is all that
    a setting which leaves prompts out has to do.
    """
    format_ = _FORMATS.get(path.suffix.lower())
    if not format_:
        _core.write_png(path, image, list(texts.items()))
        return
    exif = _exif(texts).tobytes() if texts else b""
    if format_ == "JPEG" and len(exif) > _MOST_EXIF:
        warnings.warn(f"{os.fspath(path)} has no room for the options of the run", stacklevel=3)
        exif = b""
    buffer = io.BytesIO()
    image.save(buffer, format_, quality=_QUALITY, exif=exif)
    _core.write_file(path, buffer.getvalue())


def _exif(texts: dict[str, str]) -> Exif:
    """Return EXIF with a PNG's text entries. Other tools read the comment, as AUTOMATIC1111's web
    UI writes it, and the description; the maker's note has all entries, as JSON."""
    from PIL import ExifTags, Image

    exif = Image.Exif()
    exif.endian = ">"  # of the comment's UTF-16, too
    exif[ExifTags.Base.Software] = texts["Software"]
    if "Description" in texts:
        exif[ExifTags.Base.ImageDescription] = texts["Description"].encode()
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.MakerNote] = json.dumps(texts).encode()
    if "parameters" in texts:
        comment = b"UNICODE\0" + texts["parameters"].encode("utf-16-be")
        details[ExifTags.Base.UserComment] = comment
    return exif
