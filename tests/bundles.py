"""Make the bundles that tests use. Each is exported once and kept in build/test-bundles.

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
KEPT = 3  # number of hashes whose bundles stay on the disk
MODEL = ROOT / "models" / "fashion-sd3"
SHIPPED = MODEL.name
MADE = ROOT / "build" / "bundles" / SHIPPED  # make exports it before it runs the tests
PACKAGES = (
    "torch", "diffusers", "transformers", "tokenizers", "sentencepiece", "safetensors",
    "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy",
)  # fmt: skip

BLOCK, HEIGHT = 1, 32
# The tiny SD3's settings file has more values than a family's, for tests of the defaults.
SD3_SETTINGS: dict[str, Any] = {
    "block": BLOCK,
    "steps": 4,
    "cfg_scale": 2.0,
    "dg_scale": 0.5,
    "keep": 0.0,
    "height": HEIGHT,
    "width": 32,
    "max_sequence_length": MAX_LENGTH,
    "skipping": [
        {
            "steps": 6,
            "scheduler": "FlowMatchEulerDiscreteScheduler",
            "skipped": [3, 5],
            "tolerance": 1000,
            "evidence": {"evaluations": 4.0, "error": 0.125, "largest_error": 0.25},
        }
    ],
}
# The bundles that the suite needs; the longest exports come first.
SUITE: list[dict[str, Any]] = [
    {"family": SHIPPED, "layout": "dual"},
    {"family": SHIPPED, "dtype": "float16"},
    {"family": SHIPPED, "quantize": "int8-dynamic"},
    *({"family": name, "layout": "dual", "dtype": "float16"} for name in FAMILIES),
    {"family": "sd3", "layout": "dual", "observe": True},
    {"family": "sd3", "layout": "dual"},
    *({"family": name, "dtype": "bfloat16"} for name in FAMILIES),
    *({"family": name} for name in FAMILIES),
    {"family": "sd3", "observe": True},
    {"family": "dit", "observe": True},
    *(
        {"family": "sd3", "quantize": name}
        for name in ("int8", "int4", "int8-dynamic", "fp8", "int8-qdq", "fp4")
    ),
    {"family": "z-image", "quantize_encoders": "int8"},
    {"family": "sd3", "text_encoders": "none"},
]


def _makers() -> Iterator[Path]:
    """Yield the files that decide what an export writes."""
    export = ROOT / "export" / "intaglio_export"
    yield from (path for path in export.rglob("*.py") if path.parent.name != "engines")
    yield ROOT / "models" / "bundle.schema.json"
    yield from (ROOT / "models" / "recipes").iterdir()
    yield from (ROOT / "tests" / "families").glob("*.py")
    yield from (path for path in MODEL.rglob("*") if path.is_file())


@cache
def folder() -> Path:
    """Return the cache's folder for the current hash. The oldest folders are deleted."""
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
    """Return the folder of the family's tiny pipeline, with a settings file.

    The family `SHIPPED` is the shipped model.
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
                settings["max_sequence_length"] = made.call["max_sequence_length"]
            if family == "sd3":
                settings = SD3_SETTINGS
            (path / "settings.json").write_text(json.dumps(settings))
    return path


def bundle(
    family: str = "sd3", layout: str = "forked", dtype: str = "float32", **options: Any
) -> Path:
    """Return the bundle of `source(family)`. `options` are other fields of ExportRequest.

    Tests share the bundle, so a test that changes it has to copy it first.
    """
    from intaglio_export.exporter import export_bundle
    from intaglio_export.options import ExportRequest

    if (family, layout, dtype, options) == (SHIPPED, "forked", "float32", {}) and _is_current(MADE):
        return MADE
    words = [f"{name}-{value}" for name, value in sorted(options.items())]
    output = folder() / family / "-".join([layout, dtype, *words])
    output.parent.mkdir(exist_ok=True)
    with FileLock(f"{output}.lock"):
        if not output.exists():
            request = ExportRequest(source(family), output, layout=layout, dtype=dtype, **options)
            export_bundle(request)
    return output


def _is_current(bundle: Path) -> bool:
    """Return whether `bundle` exists and is newer than everything that decides what it holds."""
    manifest = bundle / "bundle.json"
    if not manifest.exists():
        return False
    return manifest.stat().st_mtime >= max(path.stat().st_mtime for path in _makers())


def _make(options: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    bundle(**options)


def main() -> None:
    """Make every bundle of `SUITE`, with one process for each core.

    With a layout as argument, make the tiny SD3 in this layout and print its path.
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
