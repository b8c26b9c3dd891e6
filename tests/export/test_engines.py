"""Engines of the shipped model, really built without a GPU.

The families' engines (tests/parity/family.py) are small ones of both layouts and precisions.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from intaglio_export.engines.builder import BuildRequest, estimates, plan_build, plan_bytes
from intaglio_export.errors import ExitCode, ExportError
from tests import bundles
from tests.export.engines import ARCH, assert_whole, build, read, without_engines

pytestmark = pytest.mark.exports
Shipped = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """The shipped model's bundle in a layout and precision, with its engines."""
    root = tmp_path_factory.mktemp("shipped")

    @cache
    def make(layout: str, dtype: str) -> Path:
        made = bundles.bundle(bundles.SHIPPED, layout, dtype)
        bundle = without_engines(made, root / f"{layout}-{dtype}")
        build(bundle)
        return bundle

    return make


def components(bundle: Path) -> dict[str, Any]:
    (file,) = bundle.glob("engines/*/engine.json")
    return dict(read(file)["components"])


@pytest.mark.parametrize(
    ("layout", "dtype"), [("forked", "float32"), ("forked", "float16"), ("dual", "float32")]
)
def test_the_engines_are_what_the_bundle_says(shipped: Shipped, layout: str, dtype: str) -> None:
    bundle = shipped(layout, dtype)
    (folder,) = bundle.glob("engines/*/")
    assert folder.name.startswith(f"tensorrt-rtx-sm89+sm120-{dtype}-")
    found = assert_whole(bundle, folder)
    for path, entry in found.items():
        if "residual" in entry or path in ("transformer/forked.onnx", "transformer/base.onnx"):
            types = [block["dtype"] for block in entry["residual"]]
            assert types == ["float32"] * 7 + ["fused"]
        has_op = path in ("transformer/forked.onnx", "transformer/degraded.onnx")
        assert ("ma_suppress" in entry) == has_op
        if has_op:
            assert entry["ma_suppress"]["fused"]
    document = read(folder / "engine.json")
    assert document["profiles"] == [
        {"batch": [1, 1, 8], "height": [16, 32, 48], "width": [16, 32, 48]}
    ]
    assert document["targets"] == ARCH.split(",")


def test_forked_has_one_copy_of_the_weights(shipped: Shipped) -> None:
    """In float16 assert_weights says the same of the engine alone."""
    forked = components(shipped("forked", "float32"))["transformer/forked.onnx"]
    base = components(shipped("dual", "float32"))["transformer/base.onnx"]
    assert forked["weights_bytes"] <= 1.05 * base["weights_bytes"]


def test_rows_of_all_branches(shipped: Shipped) -> None:
    """1 to 8 images: one row at least, all branches of all images at most; a third one from the
    first block on is that of skipped blocks or transport."""
    forked = components(shipped("forked", "float32"))["transformer/forked.onnx"]["inputs"]
    by_name = {tensor["name"]: tensor["profiles"] for tensor in forked}
    assert by_name["latent"] == [
        {"min": [1, 4, 8, 8], "opt": [2, 4, 16, 16], "max": [24, 4, 24, 24]}
    ]
    assert by_name["branch"] == [{"min": [1], "opt": [3], "max": [24]}]
    assert by_name["keep"] == [{"min": [1, 16], "opt": [3, 64], "max": [24, 144]}]
    assert by_name["context"] == [{"min": [1, 32, 160], "opt": [2, 32, 160], "max": [24, 32, 160]}]
    assert by_name["source"] == by_name["keep"]
    dual = components(shipped("dual", "float32"))
    for name, rows in (("base", (1, 2, 24)), ("degraded", (1, 1, 8))):
        (latent,) = dual[f"transformer/{name}.onnx"]["inputs"][0]["profiles"]
        assert tuple(shape[0] for shape in latent.values()) == rows


def test_memory_is_as_estimated(shipped: Shipped) -> None:
    """Activations within a third (10 MB where that is less), weights within two hundredths, of what
    the builder says; plans are not much larger than thought, nor smaller by half a megabyte for
    each."""
    for layout in ("forked", "dual"):
        bundle = shipped(layout, "float32")
        work = plan_build(BuildRequest(bundle, "tensorrt-rtx", arch=ARCH))
        for job in work.tasks:
            assert job.entry is not None
            (estimate,), (measured,) = estimates(work, job), job.entry["activation_bytes"]
            near = 0.7 < estimate / measured < 1.4 or abs(estimate - measured) < 10e6
            assert near, job.component.path
            weights = job.component.weights_bytes
            assert abs(weights - job.entry["weights_bytes"]) < 0.02 * weights + (64 << 10)
            plan = job.entry["plan_bytes"]
            assert plan < plan_bytes(work, job.component) < 1.1 * plan + 600_000, job.component.path


def test_two_profiles_and_streamed_weights(shipped: Shipped, tmp_path: Path) -> None:
    bundle = without_engines(shipped("forked", "float16"), tmp_path / "bundle")
    small, large = "batch=1,height=16,width=16", "batch=2,height=64,width=32:64:128"
    work, built = build(bundle, profiles=(small, large), low_memory=True)
    assert len(built) == 6
    entry = assert_whole(bundle, work.folder)["transformer/forked.onnx"]
    latent = entry["inputs"][0]["profiles"]
    assert latent[0] == {"min": [1, 4, 8, 8], "opt": [2, 4, 8, 8], "max": [3, 4, 8, 8]}
    assert latent[1] == {"min": [2, 4, 32, 16], "opt": [4, 4, 32, 32], "max": [6, 4, 32, 64]}
    assert entry["activation_bytes"][0] < entry["activation_bytes"][1]
    assert entry["ma_suppress"]["fused"]
    assert read(work.folder / "engine.json")["flags"] == ["weight_streaming"]


def test_a_target_that_cannot(shipped: Shipped, tmp_path: Path) -> None:
    """Turing has no float32 products in TensorRT-RTX; what the package says is passed on."""
    bundle = without_engines(shipped("forked", "float32"), tmp_path / "bundle")
    with pytest.raises(ExportError, match=r"cannot build .*forked.onnx for sm75: .*FP32 GEMM") as e:
        build(bundle, arch="sm75")
    assert e.value.exit_code == ExitCode.UNAVAILABLE
    assert [path.name for path in (bundle / "engines").iterdir()] == [".lock"]


def test_the_default_is_every_target_that_can(shipped: Shipped, tmp_path: Path) -> None:
    bundle = without_engines(shipped("forked", "float32"), tmp_path / "bundle")
    work, _ = build(bundle, arch=None)
    more = components(bundle)["transformer/forked.onnx"]["plan_bytes"]
    two = components(shipped("forked", "float32"))["transformer/forked.onnx"]["plan_bytes"]
    assert work.settings.targets == ("sm80", "sm86", "sm89", "sm120", "sm121")
    assert more < 1.05 * two
    shutil.rmtree(bundle)
