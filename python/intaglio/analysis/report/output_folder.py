"""The folder of a report and the files in it; needs no torch."""

from __future__ import annotations

import errno
import io
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intaglio_export.errors import ExportError

STATISTICS = "statistics.npz"
# The folder of measurements of pictures.
PICTURES = "pictures"
SETTINGS = "settings.json"
# The folder of a sweep's statistics.
CHECKPOINTS = "checkpoints"
# Packages whose versions a report names; those that need torch may be missing.
PACKAGES = ("intaglio", "numpy", "onnxruntime", "torch", "diffusers", "transformers")


def write_whole(path: Path, data: bytes) -> None:
    """Write under another name and rename it to `path`, so a killed run leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write `arrays` by name to `path` (.npz), compressed, as `write_whole` does."""
    held = io.BytesIO()
    np.savez_compressed(held, **arrays)
    write_whole(path, held.getvalue())


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Read what `write_arrays` wrote to `path`; None if there is no readable file."""
    try:
        return dict(np.load(path))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def versions() -> dict[str, str]:
    """Return the versions of those `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_output(folder: Path) -> None:
    """Check that `folder` can be written to or created, before anything is measured.

    Raises:
        ExportError: it cannot, or it holds files that are not a report's.
    """
    try:
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if held and not held & {PICTURES, STATISTICS, SETTINGS, CHECKPOINTS}:
            raise ExportError(
                f"{folder} holds files that are not a report; name another folder with -o."
            )
        found = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not found.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{found} is a file")
        with TemporaryFile(dir=found):  # access rights alone do not decide, for root among others
            pass
    except OSError as error:
        raise ExportError(
            f"The report cannot be written to {folder}: {error.strerror}; name another folder with"
            " -o."
        ) from error


def read_prompts(path: Path) -> list[str]:
    """Read the lines of `path` that are not empty.

    Raises:
        ExportError: the file cannot be read, or has no such line.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except OSError as error:
        raise ExportError(f"--prompts {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"--prompts {path} is not UTF-8: {error}.") from error
    if not any(lines):
        raise ExportError(f"--prompts {path} has no prompt; write one prompt on each line.")
    return [line for line in lines if line]
