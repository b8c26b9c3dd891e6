"""The library in the Python package onnxruntime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_NAMES = ("libonnxruntime.so*", "libonnxruntime.*dylib", "onnxruntime.dll")


def onnxruntime_library() -> Path | None:
    """Return the library of the installed package onnxruntime or onnxruntime-gpu, if there is one.

    The package itself is not imported, since that takes 0.1 s and loads bindings that Intaglio does
    not use.
    """
    spec = find_spec("onnxruntime")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in _NAMES:
            for library in sorted((Path(folder) / "capi").glob(name)):
                return library
    return None
