"""The library in the Python package onnxruntime."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

_NAMES = ("libonnxruntime.so*", "libonnxruntime.*dylib", "onnxruntime.dll")


def onnxruntime_library() -> Path | None:
    """Return the library of the installed package onnxruntime or onnxruntime-gpu, if there is one.

    Both packages install to one folder. In the versions that intaglio[cuda] asks for, their
    libraries have different names there, so that pip may install them in either order. The build
    for NVIDIA's GPUs is returned before the other one, and a newer version before an older one.

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
    if len(libraries) > 1:
        return max(libraries, key=_preference)
    return libraries[0] if libraries else None


def _preference(library: Path) -> tuple[bool, list[int]]:
    # The function of the C interface that takes this provider, which other builds do not have.
    has_cuda = b"OrtSessionOptionsAppendExecutionProvider_CUDA" in library.read_bytes()
    return has_cuda, [int(number) for number in re.findall(r"\d+", library.name)]
