"""Writes a deployment to its output folder, which appears complete or not at all."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from intaglio import _core
from intaglio.deploy.contents import Deployment

# Called with the number of bytes copied so far, and of all bytes.
Progress = Callable[[int, int], None]


def check_output(output: Path, bundle: Path) -> None:
    """Check that a folder can be written to `output`.

    Raises:
        UsageError: the output would be inside the bundle.
        InputError: the output exists and is not empty, or its parent folder is missing or not
            writable.
    """
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(bundle)):
        raise _core.UsageError(
            f"the output {output} is in the bundle {bundle}: give a path outside of it with -o"
        )
    if output.is_dir():
        if any(output.iterdir()):
            raise _core.InputError(
                f"the output {output} exists and is not empty: give another path with -o"
            )
    elif output.exists() or output.is_symlink():
        raise _core.InputError(f"the output {output} is not a folder: give another path with -o")
    parent = output.resolve().parent
    if not parent.is_dir():
        raise _core.InputError(
            f"the folder {parent} for the output does not exist: create it first"
        )
    if not os.access(parent, os.W_OK):
        raise _core.InputError(
            f"the folder {parent} for the output is not writable: give another path with -o"
        )


@contextmanager
def temporary_output(output: Path, needed: int) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `output` if the block ends without error."""
    output = output.resolve()
    prefix, suffix = f".{output.name}.", ".partial"
    for left in output.parent.glob(f"{glob.escape(prefix)}{'?' * 8}{suffix}"):
        with locked(left) as abandoned:  # no other process holds it: its process was killed
            if abandoned:
                shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise _core.InputError(
            f"the disk of {output.parent} has {free / 1e6:.0f} MB free but the folder needs"
            f" {needed / 1e6:.0f} MB: free some space, or give another path with -o"
        )
    # mkdtemp would make a folder for its owner alone, whatever the umask says.
    work = output.parent / f"{prefix}{secrets.token_hex(4)}{suffix}"
    work.mkdir()
    try:
        with locked(work):
            yield work
            work.rename(output)  # which may be an empty folder
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock a folder until the block or the process ends. Yield whether that was possible."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # it was removed, or belongs to another user
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owned = True
    except OSError:
        owned = False
    try:
        yield owned
    finally:
        os.close(descriptor)


def copy_sources(deployment: Deployment, folder: Path, progress: Progress) -> None:
    """Copy all files of `deployment` to `folder`. Raises the errors of `copy`."""
    done, total = 0, deployment.bytes
    for name, source in deployment.sources.items():
        for count in copy(source, folder / name, deployment.sha256.get(name)):
            done += count
            progress(done, total)


def copy(source: Path, target: Path, sha256: str | None) -> Iterator[int]:
    """Copy a file, and yield the number of bytes of each piece.

    Raises:
        InputError: the content does not have that SHA-256.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    mode = 0o777 if os.access(source, os.X_OK) else 0o666  # from which the umask takes
    with (
        source.open("rb") as read,
        open(target, "wb", opener=lambda path, flags: os.open(path, flags, mode)) as write,
    ):
        while piece := read.read(1 << 20):
            digest.update(piece)
            write.write(piece)
            yield len(piece)
    if sha256 and digest.hexdigest() != sha256:
        raise _core.InputError(
            f"{source} is damaged, or changed while it was copied (its SHA-256 differs): export the"
            " bundle again with `intaglio export`"
        )
