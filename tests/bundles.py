"""The bundles that tests use: exported once, and kept in build/test-bundles for the next run.

Their folder is named by a hash of everything that decides what an export writes, so a change of
the C++ or of the server exports nothing. `python -m tests.bundles` makes all that the suite needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests.families import FAMILIES
from tests.families.parts import MAX_LENGTH

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "test-bundles"
KEPT = 3  # hashes whose bundles stay on the disk
MODEL = ROOT / "models" / "fashion-sd3"
SHIPPED = MODEL.name
MADE = ROOT / "build" / "bundles" / SHIPPED  # by make, before it runs the tests
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir", "numpy")

BLOCK, HEIGHT = 1, 32
# The tiny SD3's settings file has more in it than a family's: tests of the defaults read it.
SD3_SETTINGS = {
    "block": BLOCK,
    "steps": 4,
    "cfg_scale": 2.0,
    "dg_scale": 0.5,
    "keep": 0.0,
    "height": HEIGHT,
    "width": 32,
    "max_sequence_length": MAX_LENGTH,
}
# What the suite asks for, the longest exports first.
SUITE: list[dict[str, Any]] = [
    {"family": SHIPPED, "layout": "dual"},
    {"family": SHIPPED, "dtype": "float16"},
    *({"family": name, "layout": "dual", "dtype": "float16"} for name in FAMILIES),
    {"family": "sd3", "layout": "dual", "observe": True},
    {"family": "sd3", "layout": "dual"},
    *({"family": name, "dtype": "bfloat16"} for name in FAMILIES),
    *({"family": name} for name in FAMILIES),
    {"family": "sd3", "observe": True},
    {"family": "dit", "observe": True},
    *({"family": "sd3", "quantize": name} for name in ("int8", "int4", "int8-dynamic")),
    {"family": "sd3", "text_encoders": "none"},
]


def _makers() -> Iterator[Path]:
    """The files that decide what an export writes."""
    export = ROOT / "export" / "intaglio_export"
    yield from (path for path in export.rglob("*.py") if path.parent.name != "engines")
    yield ROOT / "models" / "bundle.schema.json"
    yield from (ROOT / "models" / "recipes").iterdir()
    yield from (ROOT / "tests" / "families").glob("*.py")
    yield from (path for path in MODEL.rglob("*") if path.is_file())


@cache
def folder() -> Path:
    """The cache's folder for what exports are made of now; older folders are deleted."""
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    digest.update(json.dumps([BLOCK, HEIGHT, MAX_LENGTH, SD3_SETTINGS]).encode())
    for package in PACKAGES:
        digest.update(f"{package} {version(package)}\n".encode())
    for path in sorted(_makers()):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    CACHE.mkdir(parents=True, exist_ok=True)
    found = CACHE / digest.hexdigest()[:12]
    with FileLock(CACHE / "lock"):
        found.mkdir(exist_ok=True)
        os.utime(found)
        others = [path for path in CACHE.iterdir() if path.is_dir()]
        for old in sorted(others, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old)
    return found


def source(family: str = "sd3") -> Path:
    """The family's tiny pipeline as save_pretrained writes it, with a settings file.

    `SHIPPED` is the shipped model.
    """
    if family == SHIPPED:
        return MODEL
    path = folder() / family / f"tiny-{family}"
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not (path / "settings.json").exists():
            made = FAMILIES[family]
            made.make().save_pretrained(path)
            settings = {"block": BLOCK, "height": HEIGHT, "width": made.width}
            if not made.by_class:
                settings["max_sequence_length"] = MAX_LENGTH
            if family == "sd3":
                settings = SD3_SETTINGS
            (path / "settings.json").write_text(json.dumps(settings))
    return path


def bundle(
    family: str = "sd3", layout: str = "forked", dtype: str = "float32", **options: Any
) -> Path:
    """The bundle of `source(family)`. `options` are more of ExportRequest's fields.

    Tests share it, so whoever changes a bundle copies it first.
    """
    from intaglio_export.exporter import export_bundle
    from intaglio_export.options import ExportRequest

    if (family, layout, dtype, options) == (SHIPPED, "forked", "float32", {}) and (
        MADE / "bundle.json"
    ).exists():
        return MADE
    words = [f"{name}-{value}" for name, value in sorted(options.items())]
    output = folder() / family / "-".join([layout, dtype, *words])
    output.parent.mkdir(exist_ok=True)
    with FileLock(f"{output}.lock"):
        if not output.exists():
            request = ExportRequest(source(family), output, layout=layout, dtype=dtype, **options)
            export_bundle(request)
    return output


def _make(options: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    bundle(**options)


def main() -> None:
    """Make every bundle of `SUITE`, in a process for each core.

    With a layout as argument, make the tiny SD3 in it and print where it is.
    """
    folder()
    if sys.argv[1:]:
        print(bundle(layout=sys.argv[1]))
        return
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for _ in pool.map(_make, SUITE):
            pass


if __name__ == "__main__":
    main()
