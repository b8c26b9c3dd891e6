"""`intaglio export` as a person calls it: mistakes, and what is left on the disk."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from intaglio.__main__ import GROUP, run_python
from intaglio_export import cli, exporter
from intaglio_export.bundle import verify
from intaglio_export.bundle.output_folder import leftovers, replacing
from intaglio_export.support.stopping import check_stopped, stoppable
from tests.export.test_lora import write_lora

COMMAND = EntryPoint("export", "intaglio_export.cli:export", GROUP)


@dataclass(frozen=True)
class Result:
    """What a call ended with."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command, called in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args: Any) -> Result:
        code = run_python(COMMAND, [str(arg) for arg in args])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def assert_refused(result: Result, code: int, says: str, folder: Path, left: int = 0) -> None:
    assert result.exit_code == code, result.stderr
    assert says in result.stderr
    assert result.stdout == ""
    *stages, sentence = result.stderr.splitlines()
    assert sentence.startswith("intaglio: ")
    assert not [stage for stage in stages if stage.startswith("intaglio: ")]
    assert len(list(folder.iterdir())) == left, "something was left behind"


@pytest.mark.parametrize(
    ("source", "says"), [("none", "does not exist"), ("empty", "is not a diffusers pipeline")]
)
def test_a_wrong_source(run: Run, tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(run(source, "-o", "out"), 3, says, tmp_path, left=1)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ('{"_class_name": "SanaPipeline"}', "is a SanaPipeline, which this version cannot export"),
        ("{", "cannot be read"),
        ("[]", "does not name a pipeline class"),
        ('{"_class_name": "StableDiffusion3Pipeline"}', "has no transformer"),
    ],
)
def test_a_wrong_index(run: Run, tmp_path: Path, index: str, says: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(index)
    assert_refused(run("model", "-o", "out"), 3, says, tmp_path, left=1)


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--block", "4"], 2, "blocks are 0 to 3"),
        (["--block", "-1"], 2, "blocks are 0 to 3"),
        (["--channels", "64"], 2, "channels are 0 to 63"),
        (["--channels", "top:65"], 2, "has 64 channels"),
        (["--channels", "lots"], 2, "expected auto, top:K or numbers"),
        (["--settings", "none.json"], 3, "none.json"),
        (["--layout", "triple"], 2, "'triple' is not one of 'forked', 'dual'"),
        (["--block", "x"], 2, "--block"),
        (["--no-such-flag"], 2, "No such option: --no-such-flag (see intaglio export --help)"),
        (["-o", "no/such/out"], 3, "does not exist"),
    ],
)
def test_wrong_flags(
    run: Run, sd3_folder: Path, tmp_path: Path, flags: list[str], code: int, says: str
) -> None:
    assert_refused(run(sd3_folder, "-o", "out", *flags), code, says, tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"height": 33}, "height 33 of the settings does not fit the model"),
        ({"width": 132}, "multiple of 4 from 4 to 128"),
    ],
)
def test_a_size_that_the_model_has_not_is_refused_before_the_work(
    run: Run,
    sd3_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, int],
    says: str,
) -> None:
    monkeypatch.setattr(exporter, "calibrate", None)
    (tmp_path / "s.json").write_text(json.dumps(settings))
    result = run(sd3_folder, "-o", "out", "--settings", "s.json")
    assert_refused(result, 3, says, tmp_path, left=1)


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--lora", "f.safetensors:x", "--lora", ":1"], 2, "expected FILE or FILE:SCALE"),
        (["--lora", "none.safetensors"], 3, "The LoRA none.safetensors does not exist"),
        (["--config", "other"], 2, "--config other is for a single .safetensors or .gguf file"),
    ],
)
def test_wrong_flags_of_the_source(
    run: Run, sd3_folder: Path, tmp_path: Path, flags: list[str], code: int, says: str
) -> None:
    assert_refused(run(sd3_folder, "-o", "out", *flags), code, says, tmp_path)


@pytest.mark.exports
def test_a_single_file_and_a_lora(run: Run, sd3_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tuned.safetensors"
    shutil.copy(sd3_folder / "transformer" / "diffusion_pytorch_model.safetensors", file)
    assert_refused(run(file, "-o", "out"), 2, "with --config", tmp_path, left=1)
    write_lora("sd3", tmp_path / "style.safetensors", targets=["attn.to_q"])
    ignore = shutil.ignore_patterns("text_encoder*", "tokenizer*")
    shutil.copytree(sd3_folder, tmp_path / "base", ignore=ignore)
    flags = ["--config", "base", "--lora", "style.safetensors:0.5", "--text-encoders", "none"]
    flags += ["--settings", sd3_folder / "settings.json", "--dtype", "fp16"]
    result = run(file, "-o", "out", *flags)
    assert result.exit_code == 0, result.stderr
    assert "measured on random embeddings" in " ".join(result.stderr.split())
    manifest = json.loads((tmp_path / "out" / "bundle.json").read_text())
    assert (manifest["name"], manifest["source"]) == ("tuned", "tuned")
    assert manifest["dtype"] == "float16", "the manifest keeps the long name"
    assert manifest["loras"] == [{"file": "style.safetensors", "scale": 0.5}]


def test_an_output_that_is_not_a_bundle_is_left_alone(
    run: Run, sd3_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    assert_refused(run(sd3_folder, "-o", "out"), 3, "is not a bundle", tmp_path, left=1)
    assert (tmp_path / "out" / "letter.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    assert run(sd3_folder, "-o", "file").exit_code == 3


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 3, "is full"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 3, "Permission denied"),
        (MemoryError(), 5, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), 5, "not enough memory"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_a_failing_machine(
    run: Run,
    sd3_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    says: str,
) -> None:
    def fail(*args: Any) -> None:
        raise raised

    monkeypatch.setattr(exporter, "write_stages", fail)
    assert_refused(run(sd3_folder, "-o", "out"), code, says, tmp_path)


@pytest.mark.reported(
    "pyiron/executorlib#1049", "smackers/smack#419", "python-trio/trio#676", "python/cpython#95959"
)
@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGINT, "Interrupted; nothing was written"),
        (signal.SIGTERM, "Ended by SIGTERM; nothing was written"),
        (signal.SIGHUP, "Ended by SIGHUP; nothing was written"),
    ],
)
@pytest.mark.parametrize("lost", [False, True])
def test_a_signal_ends_an_export_that_cleans_up(
    run: Run,
    sd3_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    says: str,
    lost: bool,
) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end an export with 128 and their number, and leave nothing, also
    if the signal arrives in a finalizer, where Python drops the exception."""

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def signalled(stages: Any, work: Path, progress: Callable[[str, float], None]) -> None:
        (work / "half.onnx").write_text("half")
        if lost:
            dying = Dying()
            del dying
            progress("Tracing", 0.5)
        signal.raise_signal(number)

    def own(number: int, frame: object) -> None:
        """Stand for the caller's handler, which may be anything, and which must come back."""

    monkeypatch.setattr(exporter, "write_stages", signalled)
    before = signal.signal(number, own)
    try:
        assert_refused(run(sd3_folder, "-o", "out"), 128 + number, says, tmp_path)
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    """nohup starts commands with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGHUP)
            check_stopped()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.reported("ROCm/aorta#493", "alibaba/ROCK#1141")
def test_a_killed_export_is_named_by_the_next(
    run: Run, sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that a killed export left behind is named by the next export to that place."""
    killed = """
        import os, pathlib, signal, sys
        from intaglio_export.bundle.output_folder import replacing
        with replacing(pathlib.Path("out")) as work:
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(killed)], cwd=tmp_path, check=False)
    [left] = tmp_path.iterdir()
    with replacing(tmp_path / "out"):
        assert leftovers(tmp_path / "out") == [left], (
            "the folder of an export that is running is not listed"
        )
    left = tmp_path / left.name
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = f"are free; {left} is left of an export that was killed; delete it."
    assert_refused(run(sd3_folder, "-o", "out"), 3, said, tmp_path, left=1)


def test_too_full_a_disk_is_seen_before_the_work(
    run: Run, sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert_refused(run(sd3_folder, "-o", "out"), 3, "too full", tmp_path)


@pytest.mark.exports
def test_a_graph_that_differs_is_named_and_nothing_is_written(
    run: Run, sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", {torch.float32: 1e-12})
    result = run(sd3_folder, "-o", "out", "--text-encoders", "none")
    assert_refused(result, 3, "transformer/forked.onnx differs from the torch model by", tmp_path)


@pytest.mark.exports
def test_a_bundle_is_replaced_and_the_summary_says_what_was_made(
    run: Run, sd3_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bundle.json").write_text("{}")
    (tmp_path / "out" / "old.plan").write_text("stale")
    (tmp_path / "s.json").write_text('{"name": "mine", "license": "MIT", "keep": [1, 0]}')
    flags = ("--settings", "s.json", "--channels", "3,5", "--observe", "--text-encoders", "none")
    result = run(sd3_folder, "-o", "out", *flags)
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((tmp_path / "out" / "bundle.json").read_text())
    assert (manifest["name"], manifest["license"]) == ("mine", "MIT")
    assert manifest["massive_activations"]["channels"] == [3, 5]
    assert manifest["massive_activations"]["found_by"] == "list"
    assert manifest["massive_activations"]["massive"] is False
    assert manifest["defaults"]["ma_keep"] == [1, 0]
    assert not (tmp_path / "out" / "old.plan").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s.json"]
    said = " ".join(result.stdout.split())
    stages = result.stderr.partition("Note: ")[0].splitlines()
    assert stages[:2] == ["Loading the model", "Measuring channels"]
    assert stages[-1] == "Writing the manifest"
    assert {f"Verifying {name}" for name in manifest["errors"]} <= {*stages}
    assert len(stages) == len({*stages})
    assert "forked, float32, observed" in said
    assert "3, 5 after block 1" in said
    graph = manifest["transformer"]["graphs"]["forked"]
    assert len(graph["outputs"]) == 1 + 2 * manifest["transformer"]["blocks"]


def test_help_teaches(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = run("--help").stdout
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "  transformer, and writes its networks as ONNX graphs with the op that" in lines
    assert "    intaglio export models/fashion-sd3 -o fashion.bundle" in lines
    for word in (
        "Hub",
        "--config",
        "--lora",
        "--layout",
        "--block",
        "--channels",
        "--settings",
        "--observe",
        "top:K",
        "Example",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [(["--layout", "tri"], 2, "'tri' is not one of"), (["none", "-o", "out"], 3, "does not exist")],
)
def test_the_package_runs_by_itself(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *args])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("intaglio: ")
    assert says in sentence
