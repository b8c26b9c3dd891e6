"""One relocatable folder: bundle, command and libraries."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from intaglio import _core
from intaglio.deploy.contents import Deployment, collect
from intaglio.deploy.texts import readme, smoke_test

# Called with the bytes copied so far and in all.
Progress = Callable[[int, int], None]


def write_folder(
    bundle: Path, output: Path, onnxruntime: Path | None, progress: Progress
) -> Deployment:
    """Write the folder `output`; it appears whole or not at all.

    Raises:
        InputError: the bundle, or an output that may not be written.
        UnavailableError: Intaglio's command or ONNX Runtime's library is not there.
    """
    check_output(output, bundle)
    _core.Bundle.open(bundle)
    deployment = collect(bundle, onnxruntime)
    with placing(output, deployment.bytes) as work:
        copy_sources(deployment, work, progress)
        (work / "README.md").write_text(readme(deployment, work), encoding="utf-8")
        script = work / "smoke_test.sh"
        script.write_text(smoke_test(deployment.manifest), encoding="utf-8")
        script.chmod(0o755)
    return deployment


def check_output(output: Path, bundle: Path) -> None:
    """See that a folder may be written to `output`.

    Raises:
        UsageError: it would be part of the bundle that it is made from.
        InputError: there is something already, or the folder above is missing or not writable.
    """
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(bundle)):
        raise _core.UsageError(
            f"the output {output} lies in the bundle {bundle}: give a path outside of it with -o"
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
        raise _core.InputError(f"the folder {parent} for the output does not exist: make it first")
    if not os.access(parent, os.W_OK):
        raise _core.InputError(f"the folder {parent} for the output is not writable")


@contextmanager
def placing(output: Path, needed: int) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place when the block ends without error."""
    output = output.resolve()
    prefix, suffix = f".{output.name}.", ".partial"
    for left in output.parent.glob(f"{glob.escape(prefix)}{'?' * 8}{suffix}"):
        with held(left) as abandoned:  # by a process that was killed
            if abandoned:
                shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise _core.InputError(
            f"the disk of {output.parent} is too full: the folder needs {needed / 1e6:.0f} MB and"
            f" {free / 1e6:.0f} MB are free"
        )
    work = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=output.parent))
    try:
        with held(work):
            work.chmod(0o755)
            yield work
            work.rename(output)  # over an empty folder, too
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Lock a folder for as long as this process lives; whether no other process has it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone by now, or somebody else's
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = True
    except OSError:
        mine = False
    try:
        yield mine
    finally:
        os.close(descriptor)


def copy_sources(deployment: Deployment, folder: Path, progress: Progress) -> None:
    """Copy all that `deployment` holds into `folder`. Raises as `copy`."""
    done, total = 0, deployment.bytes
    for name, source in deployment.sources.items():
        for count in copy(source, folder / name, deployment.sha256.get(name)):
            done += count
            progress(done, total)


def copy(source: Path, target: Path, sha256: str | None) -> Iterator[int]:
    """Copy a file; yields the bytes of every piece.

    Raises:
        InputError: what was read has not that SHA-256.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(1 << 20):
            digest.update(piece)
            write.write(piece)
            yield len(piece)
    if sha256 and digest.hexdigest() != sha256:
        raise _core.InputError(
            f"{source} is damaged or changed while it was copied (its SHA-256 differs): make it"
            " again with `intaglio export`"
        )
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
