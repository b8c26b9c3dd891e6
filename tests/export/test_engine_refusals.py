"""What a build refuses, each in one sentence: flags, bundles, packages, disks."""

from __future__ import annotations

import json
import os
import shutil
import sys
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from intaglio_export.engines import builder
from intaglio_export.engines.packages import gpu_target
from intaglio_export.errors import ExportError
from tests.export.engines import RTX, Names, Run, assert_whole, read, without_engines


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


BAD_FLAGS = {
    "--arch sm90": (2, "sm90 is Hopper or data-centre Blackwell, which needs --backend tensorrt"),
    "--arch sm88": (2, "sm88 is not a target; TensorRT-RTX builds for sm75, sm80, sm86, sm89"),
    "--arch=": (2, "(empty) is not a target"),
    "--precision float16": (2, "export again with --dtype float16"),
    "--precision fp8": (2, "needs a calibration that keeps the massive channels out"),
    "--precision double": (2, "is not one of float32, float16, bfloat16"),
    "--profile batch=0": (2, "batch is 1 to 1024 images"),
    "--profile batch=2:1:4": (2, "is not in order; give MIN:OPT:MAX"),
    "--profile batch=1:4": (2, "is neither MIN:OPT:MAX nor one number"),
    "--profile batch=-1": (2, "is neither MIN:OPT:MAX nor one number"),
    "--profile height=16,height=16": (2, "height is named twice"),
    "--profile depth=16": (2, "expected batch=, height= or width= with MIN:OPT:MAX"),
    "--profile width=16:32:4096": (2, "width 4096 does not fit"),
    "--profile width=18": (2, "a multiple of 4 from 4 to 128"),
    "--backend cuda": (2, "'cuda' is not one of 'tensorrt-rtx', 'tensorrt'"),
    "--backend tensorrt --arch sm90": (2, "TensorRT builds for the GPU in the machine"),
    "--no-such-flag": (2, "No such option"),
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(run_build: Run, forked_bundle: Path, tmp_path: Path, flags: str) -> None:
    bundle = without_engines(forked_bundle, tmp_path / "bundle")
    code, says = BAD_FLAGS[flags]
    assert_refused(run_build(bundle, *RTX, *flags.split(" ")), code, says)
    assert not (bundle / "engines").exists()


def assert_refused(result: tuple[int, str, str], code: int, says: str) -> None:
    assert result[:2] == (code, ""), result
    assert says in result[2]
    assert result[2].startswith("intaglio: ")
    assert result[2].count("\n") == 1


def cut(bundle: Path, path: str) -> None:
    os.truncate(bundle / path, 100)


def forge(bundle: Path, path: str) -> None:
    data = bytearray((bundle / path).read_bytes())
    data[-1] ^= 1
    (bundle / path).write_bytes(data)


def newer(bundle: Path, path: str) -> None:
    manifest = read(bundle / path) | {"schema_version": 2}
    (bundle / path).write_text(json.dumps(manifest))


def no_graph(bundle: Path, path: str) -> None:
    manifest = read(bundle / path)
    del manifest["transformer"]["graphs"]
    (bundle / path).write_text(json.dumps(manifest))


def remove(bundle: Path, path: str) -> None:
    (bundle / path).unlink()


@pytest.mark.parametrize(
    ("spoil", "path", "says"),
    [
        (remove, "bundle.json", "is not a bundle (it has no bundle.json)"),
        (cut, "bundle.json", "bundle.json is not JSON"),
        (newer, "bundle.json", "made by a newer Intaglio (this one reads 1)"),
        (no_graph, "bundle.json", "'graphs' is a required property (at transformer)"),
        (remove, "transformer/weights.data", "lacks transformer/weights.data; export again"),
        (remove, "vae_decoder/model.onnx", "lacks vae_decoder/model.onnx; export again"),
        (cut, "transformer/weights.data", "(its size differs); export again"),
        (forge, "transformer/weights.data", "(its SHA-256 differs); export again"),
    ],
)
def test_a_bad_bundle(
    run_build: Run, forked_bundle: Path, tmp_path: Path, spoil: Any, path: str, says: str
) -> None:
    bundle = without_engines(forked_bundle, tmp_path / "bundle")
    spoil(bundle, path)
    assert_refused(run_build(bundle, *RTX), 3, says)
    assert not list(bundle.rglob("*.plan"))


def test_no_bundle(run_build: Run, tmp_path: Path) -> None:
    assert_refused(run_build(tmp_path / "none", *RTX), 3, "none does not exist")


def test_a_missing_package(run_build: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    assert_refused(run_build(bundle, *RTX), 4, 'pip install "intaglio[tensorrt-rtx]"')


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_plain_tensorrt_is_not_installed(run_build: Run, bundle: Path) -> None:
    assert_refused(run_build(bundle, "--backend", "tensorrt"), 4, "pip install tensorrt")


def test_plain_tensorrt_needs_a_gpu_here() -> None:
    if find_library("cuda"):
        pytest.skip("there is a driver")
    with pytest.raises(ExportError, match="this one has no NVIDIA driver") as raised:
        gpu_target()
    assert raised.value.exit_code == 4


@pytest.mark.gpu
def test_plain_tensorrt_builds_for_the_gpu_here(forked_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="needs TensorRT's Python package")
    bundle = without_engines(forked_bundle, tmp_path / "bundle")
    request = builder.BuildRequest(bundle, "tensorrt")
    work = builder.build_engines(request, Names())
    assert_whole(bundle, work.folder)
    assert work.settings.targets == (gpu_target(),)
    (cache,) = (bundle / "engines").glob(f"tensorrt-*-{gpu_target()}.timing_cache")
    assert cache.stat().st_size > 0
    shutil.rmtree(work.folder)
    cache.write_bytes(cache.read_bytes()[:100])
    builder.build_engines(request, Names())
    assert cache.stat().st_size > 100
    assert builder.build_engines(request, Names()).built == frozenset()


def test_too_full_a_disk(run_build: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bundle)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert_refused(run_build(bundle, *RTX, "--arch", "sm86"), 3, "too full")
