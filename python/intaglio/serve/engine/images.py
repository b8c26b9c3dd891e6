"""PNG files, and the folder of images that are fetched by URL."""

from __future__ import annotations

import base64
import errno
import fcntl
import io
import math
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from intaglio import InputError
from intaglio.serve import logs
from intaglio.serve.errors import ApiError

_NAME = re.compile(r"[0-9a-f]{32}")
# Seconds after which an unfinished file is removed, since the server that wrote it was killed.
_UNFINISHED_SECONDS = 60
# Start of the names of temporary folders.
_PREFIX = "intaglio-images-"
# What to do when images cannot be written.
_ADVICE = {
    errno.EACCES: "let the server's user write into its images folder",
    errno.EDQUOT: "raise the disk quota of the server's user, or free space in it",
    errno.EEXIST: "set `images` to a folder",
    errno.EFBIG: "raise the server's limit on the size of files (ulimit -f)",
    errno.EIO: "check the server's disk",
    errno.EMFILE: "raise the server's limit on open files (ulimit -n), or lower limits.connections",
    errno.ENFILE: "raise the machine's limit on open files (fs.file-max)",
    errno.ENOSPC: "free disk space on the server",
    errno.ENOTDIR: "set `images` to a folder",
    errno.EPERM: "let the server's user write into its images folder",
    errno.EROFS: "set `images` to a folder on a file system that can be written",
}


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
    """A folder of images whose names cannot be guessed. Each image expires after `seconds`.

    The folder is made when an image is written, also if something has removed it meanwhile.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self._seconds = folder, seconds
        self._making = threading.Lock()

    def check(self) -> None:
        """Make the folder if necessary. Raises InputError if images cannot be written into it."""
        try:
            self._make_folder()
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise InputError(
                f"cannot use the images folder {self.folder}: {_cause(error)}"
            ) from None

    def write(self, png: bytes) -> str:
        """Store an image as a whole or not at all, and return its name. Raises ApiError (507)."""
        name = secrets.token_hex(16)
        try:
            try:
                self._write(name, png)
            except FileNotFoundError:
                self._make_folder()
                self._write(name, png)
        except OSError as error:
            logs.write("image_not_stored", folder=str(self.folder), error=error.strerror)
            raise ApiError(
                507,
                "image_not_stored",
                f"the image could not be stored: {_cause(error)}, or ask /v1/images/generations"
                " for response_format b64_json",
            ) from None
        return name

    def _write(self, name: str, png: bytes) -> None:
        part = self.folder / f"{name}.part"
        try:
            part.write_bytes(png)
            part.replace(self.folder / f"{name}.png")
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

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

    def close(self) -> None:
        """Do nothing, since the images stay."""


class TemporaryImages(ImageStore):
    """Images in a temporary folder of this server, which `close` removes.

    The folder is locked while the server runs. The lock keeps systemd-tmpfiles away from it, and
    without the lock the next server knows that it belongs to a server that was killed.
    """

    def __init__(self, seconds: float) -> None:
        """Remove the folders of servers that were killed."""
        folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{secrets.token_hex(8)}"
        super().__init__(folder, seconds)
        self._descriptor: int | None = None
        for left in folder.parent.glob(f"{_PREFIX}*"):
            _remove_unlocked(left)

    def _make_folder(self) -> None:
        with self._making:
            if self.folder.exists():
                return
            self._unlock()
            # It gets its name when it is locked, so that no other server removes it before.
            made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=self.folder.parent))
            self._descriptor = _open_folder(made)
            _lock(self._descriptor)
            made.rename(self.folder)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _lock(descriptor: int) -> bool:
    """Lock a folder until the descriptor is closed. Return whether that was possible."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is locked, or its file system has no locks
        return False
    return True


def _remove_unlocked(folder: Path) -> None:
    """Remove a folder of this user that no server has locked."""
    try:
        descriptor = _open_folder(folder)
    except OSError:
        return
    try:
        if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
            logs.write("removed", folder=str(folder), what="images of a server that was killed")
    finally:
        os.close(descriptor)


def _cause(error: OSError) -> str:
    """Return what is wrong and what to do about it."""
    advice = _ADVICE.get(error.errno or 0, "see the server's disk and its log")
    return f"{error.strerror}; {advice}"


def _age(path: Path) -> float:
    """Return the seconds since the file was written; infinity if it does not exist."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf
