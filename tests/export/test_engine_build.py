"""The course of a build: what is built again, locks, interruptions, bad input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from ctypes.util import find_library
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import filelock
import pytest

from intaglio.__main__ import GROUP, run_python
from intaglio_export.engines import builder
from intaglio_export.engines.packages import gpu_target
from intaglio_export.errors import ExportError
from tests.export.engines import Names, assert_whole, build, read, without_engines

COMMAND = EntryPoint("build", "intaglio_export.engines.cli:build", GROUP)
ENTRY_POINT = Path(sysconfig.get_path("scripts")) / "intaglio"
RTX = ("--backend", "tensorrt-rtx")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def built(forked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline's bundle with its engines; copy it to change it."""
    bundle = without_engines(forked_bundle, tmp_path_factory.mktemp("built") / "bundle")
    build(bundle)
    return bundle


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command; returns its exit code and what it says."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: Any) -> tuple[int, str, str]:
        code = run_python(COMMAND, [str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below `folder`: its size and when it was written."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in found
        if path.name != ".lock"
    }


def test_engines_that_are_there_are_kept(bundle: Path) -> None:
    before = files(bundle)
    assert build(bundle)[1] == []
    assert files(bundle) == before


def change_weights(bundle: Path, path: str) -> None:
    """Another weight, and the manifest that says so."""
    file = bundle / path
    data = bytearray(file.read_bytes())
    data[:4] = bytes(4)
    file.write_bytes(data)
    manifest = read(bundle / "bundle.json")
    manifest["files"][path]["sha256"] = hashlib.sha256(data).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def test_only_what_differs_is_built_again(bundle: Path) -> None:
    (folder,) = bundle.glob("engines/*/")
    before = read(folder / "engine.json")["components"]
    change_weights(bundle, "text_encoder/weights.data")
    (folder / "vae_encoder.plan").write_bytes(b"cut")
    (folder / "vae_decoder.plan").unlink()
    work, again = build(bundle)
    assert again == ["text_encoder/model.onnx", "vae_decoder/model.onnx", "vae_encoder/model.onnx"]
    assert work.built == set(again)
    found = assert_whole(bundle, folder)
    changed = {path for path, entry in found.items() if entry["key"] != before[path]["key"]}
    assert changed == {"text_encoder/model.onnx"}


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}'])
def test_a_report_that_cannot_be_read_counts_for_nothing(bundle: Path, text: str) -> None:
    (folder,) = bundle.glob("engines/*/")
    (folder / "engine.json").write_text(text)
    work = builder.plan_work(builder.BuildRequest(bundle, "tensorrt-rtx", arch="sm89,sm120"))
    assert work.folder == folder
    assert [job.entry for job in work.jobs] == [None] * 5


def test_dry_run_shows_what_there_is_to_do(run: Run, bundle: Path, built: Path) -> None:
    (folder,) = bundle.glob("engines/*/")
    (folder / "forked.plan").unlink()
    before = files(bundle)
    code, out, err = run(bundle, *RTX, "--arch", "sm120,sm89", "--dry-run")
    assert (code, err) == (0, "")
    lines = {words[0]: words for line in out.splitlines() if (words := line.split())}
    assert lines["transformer/forked.onnx"][1:3] == ["to", "build"]
    assert lines["vae_decoder/model.onnx"][1:3] == ["is", "there"]
    assert str(folder) in out
    assert files(bundle) == before
    other = run(bundle, *RTX, "--arch", "sm89", "--dry-run")[1]
    assert other.count("to build") == 5
    assert files(bundle) == before


def test_dry_run_makes_no_folder(run: Run, forked_bundle: Path, tmp_path: Path) -> None:
    bundle = without_engines(forked_bundle, tmp_path / "bundle")
    assert run(bundle, *RTX, "--dry-run")[0] == 0
    assert not (bundle / "engines").exists()


def test_a_second_builder_goes_away(run: Run, bundle: Path) -> None:
    before = files(bundle)
    with filelock.FileLock(bundle / "engines" / ".lock"):
        code, out, err = run(bundle, *RTX, "--arch", "sm86")
    assert (code, out) == (4, "")
    assert err == (
        f"intaglio: Another intaglio build is at work in {bundle / 'engines'};"
        " wait until it has ended.\n"
    )
    assert files(bundle) == before


def start(bundle: Path) -> subprocess.Popen[str]:
    line = [str(ENTRY_POINT), "build", str(bundle), *RTX, "--arch", "sm89"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], done: Callable[[], Any]) -> None:
    while not done():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_building(pid: int) -> bool:
    """Whether one of its processes is Python's, started anew, with the builder's library open."""
    return any(
        "multiprocessing" in text(child, "cmdline") and "libtensorrt_rtx" in text(child, "maps")
        for child in children(pid)
    )


def text(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


# The first is within the call that starts a process, now and then before it is one of its own.
@pytest.mark.parametrize("moment", [children, is_building])
def test_ctrl_c_in_a_build(bundle: Path, moment: Callable[[int], Any]) -> None:
    """Engines of before stay as they are, and nothing goes on."""
    before = files(bundle)
    with start(bundle) as process:
        wait_for(process, lambda: moment(process.pid))
        started = children(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert err == (
        f"intaglio: Interrupted; the engines that were ready are in {bundle / 'engines'}.\n"
    )
    assert files(bundle) == before
    wait_for_end(started)


def test_a_builder_that_is_killed(bundle: Path) -> None:
    """Its process ends with it, and the next build clears up and goes on."""
    with start(bundle) as process:
        wait_for(process, lambda: list(bundle.glob("engines/*-sm89-*/forked.plan")))
        wait_for(process, lambda: is_building(process.pid))
        started = children(process.pid)
        process.kill()
        process.communicate(timeout=20)
    wait_for_end(started)
    (folder,) = bundle.glob("engines/*-sm89-*/")
    (folder / "vae_decoder.partial").write_bytes(b"half")
    assert "transformer/forked.onnx" not in build(bundle, arch="sm89")[1]
    assert_whole(bundle, folder)


def wait_for_end(pids: list[int]) -> None:
    """All of them end by themselves, and soon."""
    late = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < late
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


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
def test_bad_flags(run: Run, forked_bundle: Path, tmp_path: Path, flags: str) -> None:
    bundle = without_engines(forked_bundle, tmp_path / "bundle")
    code, says = BAD_FLAGS[flags]
    assert_refused(run(bundle, *RTX, *flags.split(" ")), code, says)
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
    run: Run, forked_bundle: Path, tmp_path: Path, spoil: Any, path: str, says: str
) -> None:
    bundle = without_engines(forked_bundle, tmp_path / "bundle")
    spoil(bundle, path)
    assert_refused(run(bundle, *RTX), 3, says)
    assert not list(bundle.rglob("*.plan"))


def test_no_bundle(run: Run, tmp_path: Path) -> None:
    assert_refused(run(tmp_path / "none", *RTX), 3, "none does not exist")


def test_a_missing_package(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    assert_refused(run(bundle, *RTX), 4, 'pip install "intaglio[tensorrt-rtx]"')


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_plain_tensorrt_is_not_installed(run: Run, bundle: Path) -> None:
    assert_refused(run(bundle, "--backend", "tensorrt"), 4, "pip install tensorrt")


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
    assert (bundle / "engines" / "tensorrt.timing_cache").stat().st_size > 0
    assert builder.build_engines(request, Names()).built == frozenset()


def test_too_full_a_disk(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bundle)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert_refused(run(bundle, *RTX, "--arch", "sm86"), 3, "too full")


def test_a_build_needs_no_torch(bundle: Path) -> None:
    """A build machine has none; nor has it what only the exporter needs."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'diffusers', 'transformers',"
        " 'onnxscript', 'onnx_ir'])\n"
        "from importlib.metadata import EntryPoint; from intaglio.__main__ import run_python\n"
        "sys.exit(run_python(EntryPoint('build', 'intaglio_export.engines.cli:build', 'x'),"
        " sys.argv[1:]))"
    )
    line = [sys.executable, "-c", code, str(bundle), *RTX, "--arch", "sm89,sm120"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "was there" in done.stdout


def test_help_teaches(run: Run) -> None:
    text = run("--help")[1]
    for word in (
        "--arch",
        "sm120",
        "--profile",
        "--low-memory",
        "--dry-run",
        "Example",
        "without a GPU",
    ):
        assert word in text
