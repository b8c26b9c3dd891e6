"""What a build refuses, each in one sentence: flags, bundles, packages, disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from intaglio_export.engines import builder
from intaglio_export.engines.bindings import Binding
from intaglio_export.engines.checks import check_engine
from intaglio_export.engines.network import BuildSpec
from intaglio_export.engines.packages import gpu_target
from intaglio_export.engines.profiles import Shape
from intaglio_export.errors import ExportError
from tests.export.engines import (
    ARCH,
    ENTRY_POINT,
    RTX,
    Names,
    Run,
    assert_whole,
    read,
    without_engines,
)

pytestmark = pytest.mark.exports


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


BAD_FLAGS = {
    "--arch sm90": (2, "sm90 is Hopper or data-centre Blackwell, which needs --backend tensorrt"),
    "--arch sm88": (2, "sm88 is not a target; TensorRT-RTX builds for sm75, sm80, sm86, sm89"),
    "--arch SM89": (2, "--arch SM89: SM89 is not a target; it is spelled sm89."),
    "--arch sm120,sm_86": (2, "sm_86 is not a target; it is spelled sm86."),
    "--arch=": (2, "(empty) is not a target"),
    "--precision float16": (2, "export again with --dtype float16"),
    "--precision fp8": (2, "export again with --quantize fp8 or int8-qdq"),
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
    "--backend tensorrt --arch sm90": (2, "TensorRT builds only for the GPU in the machine"),
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
    manifest = read(bundle / path) | {"schema_version": 4}
    (bundle / path).write_text(json.dumps(manifest))


def no_graph(bundle: Path, path: str) -> None:
    manifest = read(bundle / path)
    del manifest["transformer"]["graphs"]
    (bundle / path).write_text(json.dumps(manifest))


def change(where: str, value: Any) -> Any:
    """Puts `value` into the manifest at a place such as `defaults/height`; None removes it."""

    def spoil(bundle: Path, path: str) -> None:
        manifest = read(bundle / path)
        *above, last = (int(key) if key.isdigit() else key for key in where.split("/"))
        place: Any = manifest
        for key in above:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
        (bundle / path).write_text(json.dumps(manifest))

    return spoil


INPUTS = "transformer/graphs/forked/inputs"


def remove(bundle: Path, path: str) -> None:
    (bundle / path).unlink()


@pytest.mark.parametrize(
    ("spoil", "path", "says"),
    [
        (remove, "bundle.json", "is not a bundle (it has no bundle.json)"),
        (cut, "bundle.json", "bundle.json is not JSON"),
        (newer, "bundle.json", "made by a newer Intaglio (this one reads up to 3)"),
        (no_graph, "bundle.json", "'graphs' is a required property (at transformer)"),
        (remove, "transformer/weights.data", "lacks transformer/weights.data; export again"),
        (remove, "vae_decoder/model.onnx", "lacks vae_decoder/model.onnx; export again"),
        (cut, "transformer/weights.data", "(its size differs); export again"),
        (forge, "transformer/weights.data", "(its SHA-256 differs); export again"),
        (change(f"{INPUTS}/0/axes/2", "frames"), "bundle.json", "latent is float32 of base_rows x"),
        (change(f"{INPUTS}/0/dtype", "int64"), "bundle.json", "there latent is int64"),
        (change(f"{INPUTS}/0", None), "bundle.json", "latent is missing, and in the graph it is"),
        (
            change("vae_decoder/outputs/0/axes/1", 4),
            "bundle.json",
            "not fit vae_decoder/model.onnx",
        ),
        (change("defaults/height", 33), "bundle.json", "the default height 33 does not fit"),
        (change("transformer/blocks", 9), "bundle.json", "the 9 blocks of bundle.json"),
    ],
)
def test_a_bad_bundle(
    run_build: Run, forked_bundle: Path, tmp_path: Path, spoil: Any, path: str, says: str
) -> None:
    bundle = without_engines(forked_bundle, tmp_path / "bundle")
    spoil(bundle, path)
    assert_refused(run_build(bundle, *RTX), 3, says)
    assert not list(bundle.rglob("*.plan"))
    assert says.startswith("(its SHA-256") or not (bundle / "engines").exists()


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
    assert_refused(
        run_build(bundle, *RTX, "--arch", "sm86"), 3, "too full: the engines need about "
    )


def root_as_others() -> list[str]:
    """What a command has to start with for permissions to hold for root too."""
    return ["setpriv", "--bounding-set=-dac_override", "--"] if os.geteuid() == 0 else []


def test_a_bundle_that_cannot_be_written(bundle: Path) -> None:
    """Engines that are there are reported; for those that are not, it says what to do."""
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)

    def build(arch: str) -> tuple[int, str, str]:
        line = [*root_as_others(), str(ENTRY_POINT), "build", str(bundle), *RTX, "--arch", arch]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, out, err = build(ARCH)
    assert (code, out.count("was there"), err) == (0, 6, "")
    assert_refused(build("sm89"), 3, "copy the bundle to where it can be written")


def test_an_engine_that_is_something_else(bundle: Path) -> None:
    """What the builder made is told in words, as bundle.json and the profiles are."""
    request = builder.BuildRequest(bundle, "tensorrt-rtx", arch=ARCH)
    part = builder.plan_build(request).tasks[-1].component
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {
        "image": ((1, 3, 16, 16), (1, 3, 32, 32), (1, 3, 48, 48))
    }
    order = BuildSpec("tensorrt-rtx", bundle / part.path, ("sm89",), (), (shapes,), (), Path())
    image = Binding("image", True, "float16", (1, 3, -1, -1), (shapes["image"],))
    with pytest.raises(ExportError) as raised:
        check_engine(part, order, [image])
    message = raised.value.message
    assert "has image as float16 of 1 x 3 x -1 x -1, from 1x3x16x16 to 1x3x48x48 where" in message
    assert "float32 of images x 3 x image_height x image_width, from 1x3x16x16" in message
    assert message.endswith("; export again.")
    assert not set(message) & set("{}'()")
