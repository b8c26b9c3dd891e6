"""Where Python's onnxruntime package keeps its library."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_NAMES = ("libonnxruntime.so*", "libonnxruntime.*dylib", "onnxruntime.dll")


def onnxruntime_library() -> Path | None:
    """The library inside the installed onnxruntime or onnxruntime-gpu; None without one.

    The package itself is not imported: that takes a tenth of a second and loads a second copy of
    Python bindings that nobody here uses.
    """
    spec = find_spec("onnxruntime")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in _NAMES:
            for library in sorted((Path(folder) / "capi").glob(name)):
                return library
    return None
