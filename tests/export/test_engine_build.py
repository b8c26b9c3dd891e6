"""The course of a build: what is built again, locks, interruptions, bad input."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from intaglio_export.engines import builder, engine_file
from tests.export.engines import (
    ENTRY_POINT,
    RTX,
    Run,
    assert_whole,
    build,
    graphs,
    read,
    without_engines,
)

pytestmark = pytest.mark.exports


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


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


def plan(folder: Path, name: str) -> Path:
    (found,) = folder.glob(f"{name}-*.plan")
    return found


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
    plan(folder, "vae_encoder").write_bytes(b"cut")
    plan(folder, "vae_decoder").unlink()
    work, again = build(bundle)
    assert again == ["text_encoder/model.onnx", "vae_decoder/model.onnx", "vae_encoder/model.onnx"]
    assert work.built == set(again)
    found = assert_whole(bundle, folder)
    changed = {path for path, entry in found.items() if entry["key"] != before[path]["key"]}
    assert changed == {"text_encoder/model.onnx"}


def test_shapes_that_the_manifest_changes_are_built(bundle: Path) -> None:
    """The graphs are the same, and so are the profiles: in pixels. The text passes through both."""
    (folder,) = bundle.glob("engines/*/")
    length = set_text_length(bundle, 3)
    rebuilt = {"transformer/forked.onnx": "context", "transformer/conditioning.onnx": "text"}
    assert build(bundle)[1] == list(rebuilt)
    components = assert_whole(bundle, folder)
    for path, name in rebuilt.items():
        (text,) = (tensor for tensor in components[path]["inputs"] if tensor["name"] == name)
        assert {shape[1] for shape in text["profiles"][0].values()} == {length}


def set_text_length(bundle: Path, add: int) -> int:
    """Lengthen the text by `add` tokens. Returns the length of all its parts together."""
    manifest = read(bundle / "bundle.json")
    text = manifest["prompt"]["text"]
    text[-1]["length"] += add
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    return sum(int(segment["length"]) for segment in text)


def test_a_kill_leaves_no_plan_under_another_entry(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the plan and engine.json: the entry that is there speaks of the plan it was for."""
    (folder,) = bundle.glob("engines/*/")
    entry = read(folder / "engine.json")["components"]["transformer/forked.onnx"]
    set_text_length(bundle, 3)

    def killed(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(engine_file, "write", killed)
    with pytest.raises(SystemExit):
        build(bundle)
    monkeypatch.undo()
    assert len(list(folder.glob("forked-*.plan"))) == 2
    old = (folder / entry["plan"]).read_bytes()
    assert hashlib.sha256(old).hexdigest() == entry["plan_sha256"]
    build(bundle)
    assert_whole(bundle, folder)


def test_plans_of_another_layout_go(bundle: Path, dual_bundle: Path) -> None:
    (folder,) = bundle.glob("engines/*/")
    shutil.copytree(dual_bundle, bundle, dirs_exist_ok=True)
    assert {path for path in build(bundle)[1] if "transformer" in path} == {
        "transformer/base.onnx",
        "transformer/degraded.onnx",
    }
    assert_whole(bundle, folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}'])
def test_a_report_that_cannot_be_read_counts_for_nothing(bundle: Path, text: str) -> None:
    (folder,) = bundle.glob("engines/*/")
    (folder / "engine.json").write_text(text)
    work = builder.plan_build(builder.BuildRequest(bundle, "tensorrt-rtx", arch="sm89,sm120"))
    assert work.folder == folder
    assert [job.entry for job in work.tasks] == [None] * len(graphs(read(bundle / "bundle.json")))


def test_dry_run_shows_what_there_is_to_do(run_build: Run, bundle: Path, built: Path) -> None:
    (folder,) = bundle.glob("engines/*/")
    plan(folder, "forked").unlink()
    before = files(bundle)
    code, out, err = run_build(bundle, *RTX, "--arch", "sm120,sm89", "--dry-run")
    assert (code, err) == (0, "")
    lines = {words[0]: words for line in out.splitlines() if (words := line.split())}
    assert lines["transformer/forked.onnx"][1:3] == ["to", "build"]
    assert lines["vae_decoder/model.onnx"][1:3] == ["is", "there"]
    assert str(folder) in out
    assert files(bundle) == before
    other = run_build(bundle, *RTX, "--arch", "sm89", "--dry-run")[1]
    assert other.count("to build") == len(graphs(read(bundle / "bundle.json")))
    assert files(bundle) == before


def test_a_pipe_gets_whole_lines(bundle: Path) -> None:
    long = Path(shutil.move(bundle, bundle.with_name("b" * 200)))
    for flags in ((), ("--dry-run",)):
        line = [str(ENTRY_POINT), "build", str(long), *RTX, "--arch", "sm89,sm120", *flags]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        (folder,) = long.glob("engines/*/")
        assert lines[0] == f"engines   {folder}"
        assert [text for text in lines if text != text.rstrip()] == []


def test_a_report_that_cannot_be_written(bundle: Path) -> None:
    (folder,) = bundle.glob("engines/*/")
    line = [str(ENTRY_POINT), "build", str(bundle), *RTX, "--arch", "sm89,sm120"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == (
        "intaglio: The report cannot be written to standard output (No space left on device);"
        f" the engines are in {folder}.\n"
    )


def test_dry_run_makes_no_folder(run_build: Run, forked_bundle: Path, tmp_path: Path) -> None:
    bundle = without_engines(forked_bundle, tmp_path / "bundle")
    assert run_build(bundle, *RTX, "--dry-run")[0] == 0
    assert not (bundle / "engines").exists()


def test_a_second_builder_goes_away(run_build: Run, bundle: Path) -> None:
    before = files(bundle)
    with filelock.FileLock(bundle / "engines" / ".lock"):
        code, out, err = run_build(bundle, *RTX, "--arch", "sm86")
    assert (code, out) == (4, "")
    assert err == (
        f"intaglio: Another intaglio build is running in {bundle / 'engines'};"
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
@pytest.mark.parametrize(
    ("moment", "number", "says"),
    [
        (children, signal.SIGINT, "Interrupted"),
        (is_building, signal.SIGINT, "Interrupted"),
        (is_building, signal.SIGTERM, "Ended by SIGTERM"),
    ],
)
def test_a_signal_in_a_build(
    bundle: Path, moment: Callable[[int], Any], number: signal.Signals, says: str
) -> None:
    """Engines of before stay as they are, and nothing goes on."""
    before = files(bundle)
    with start(bundle) as process:
        wait_for(process, lambda: moment(process.pid))
        started = children(process.pid)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert out == ""
    *stages, sentence = err.splitlines()
    assert sentence == (
        f"intaglio: {says}; the engines that were ready are in {bundle / 'engines'}."
    )
    assert not [stage for stage in stages if not stage.startswith("Building ")]
    assert files(bundle) == before
    wait_for_end(started)


@pytest.mark.parametrize("library", ["onnx_cpp2py", "rpds"])
def test_ctrl_c_while_the_command_is_imported(bundle: Path, library: str) -> None:
    """One sentence, whatever was being imported."""
    with start(bundle) as process:
        wait_for(process, lambda: library in text(process.pid, "maps"))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert re.fullmatch(r"intaglio: [Ii]nterrupted.*\n", err)


def test_a_builder_that_is_killed(bundle: Path) -> None:
    """Its process ends with it, and the next build clears up and goes on."""
    with start(bundle) as process:
        wait_for(process, lambda: list(bundle.glob("engines/*-sm89-*/forked-*.plan")))
        wait_for(process, lambda: is_building(process.pid))
        started = children(process.pid)
        process.kill()
        process.communicate(timeout=20)
    wait_for_end(started)
    (folder,) = bundle.glob("engines/*-sm89-*/")
    (folder / "vae_decoder.partial").write_bytes(b"half")
    for name in ("a", "b"):
        (bundle / "engines" / name).mkdir()
    (bundle / "engines" / "b" / "forked-0123abcd.plan").write_bytes(b"of no engine.json")
    assert "transformer/forked.onnx" not in build(bundle, arch="sm89")[1]
    assert_whole(bundle, folder)
    assert len([path for path in bundle.glob("engines/*") if path.is_dir()]) == 2


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


def test_help_teaches(run_build: Run) -> None:
    text = run_build("--help")[1]
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
