"""The library in the Python package onnxruntime."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

_NAMES = ("libonnxruntime.so*", "libonnxruntime.*dylib", "onnxruntime.dll")


def onnxruntime_library() -> Path | None:
    """Return the library of the installed package onnxruntime or onnxruntime-gpu, if there is one.

    Both packages install to one folder, which may so hold several versions; the newest is returned.

    The package itself is not imported, since that takes 0.1 s and loads bindings that Intaglio does
    not use.
    """
    try:
        spec = find_spec("onnxruntime")
    except ValueError:  # a module of that name was put into sys.modules, without a package
        return None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    libraries = [
        path for folder in folders for name in _NAMES for path in Path(folder, "capi").glob(name)
    ]
    return max(libraries, key=_version, default=None)


def _version(library: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", library.name)]
