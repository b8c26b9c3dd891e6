"""Write the output folder under a temporary name beside it, and then exchange it in one step."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from intaglio_export.errors import ExportError
from intaglio_export.support.stopping import undisturbed

MANIFEST = "bundle.json"
SCHEMA_VERSION = 3  # the newest; bundles that readers of schema 1 understand have 1
ENGINES = "engines"
_PARTIAL = ".partial"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_output(path: Path) -> None:
    """Check that a bundle may be written to `path`, or to the target of a symbolic link there.

    Raises:
        ExportError: `path` exists and is not a bundle, or its parent folder is missing or not
            writable.
    """
    if path.is_dir():
        if any(path.iterdir()) and not (path / MANIFEST).is_file():
            raise ExportError(
                f"The output {path} exists and is not a bundle (it has no {MANIFEST});"
                " give another path with -o."
            )
    elif path.exists():
        raise ExportError(f"The output {path} is not a folder; give another path with -o.")
    parent = _real(path).parent
    if not parent.is_dir():
        raise ExportError(
            f"The parent folder {parent} of the output does not exist; create it first."
        )
    if not os.access(parent, os.W_OK):
        raise ExportError(
            f"The parent folder {parent} of the output is not writable; choose another with -o."
        )


def check_space(path: Path, needed: int, who: str = "the bundle needs", advice: str = "") -> None:
    """Check that the disk of `path` has `needed` free bytes.

    `who` and `advice` go into the message.

    Raises:
        ExportError: the disk has not.
    """
    parent = _real(path).parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ExportError(
            f"The disk of {parent} is too full: {who} about {needed / 1e6:.0f} MB"
            f" and {free / 1e6:.0f} MB are free{advice}."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that replaces it when the block ends without error.

    An existing bundle is exchanged with the new one in one step and then removed; its engines move
    to the new bundle. After an error `path` is unchanged and the temporary folder is removed. If
    `path` is a symbolic link, its target is replaced.
    """
    check_output(path)
    path = _real(path)
    # mkdtemp would make a folder for its owner alone, whatever the umask says.
    work = path.parent / f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}"
    work.mkdir()
    lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)  # it ends with the process
    try:
        _lock(lock)
        yield work
        with undisturbed():
            if path.exists():
                _exchange(work, path)
                if (work / ENGINES).is_dir():  # intaglio build checks which of them still fit
                    (work / ENGINES).rename(path / ENGINES)
            else:
                work.rename(path)
    finally:
        with undisturbed():
            os.close(lock)
            shutil.rmtree(work, ignore_errors=True)


def leftovers(path: Path) -> list[Path]:
    """Return the temporary folders beside `path` of exports that were killed."""
    path = _real(path)
    found = []
    for folder in path.parent.glob(f"{glob.escape(f'.{path.name}.')}????????{_PARTIAL}"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # it has just been removed, or belongs to another user
            continue
        if _lock(descriptor):
            found.append(folder)
        os.close(descriptor)
    return sorted(found)


def _lock(descriptor: int) -> bool:
    """Lock a folder until it is closed, and return whether that was possible."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another export runs, or the file system has no locks
        return False
    return True


def _real(path: Path) -> Path:
    """Resolve symbolic links in `path`: an exchange would otherwise exchange the link itself."""
    return Path(os.path.realpath(path))


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders, atomically if the system can do that, else by three renames."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        paths = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old))
        if renameat2(*paths, _RENAME_EXCHANGE) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    aside = new.with_suffix(".old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)
