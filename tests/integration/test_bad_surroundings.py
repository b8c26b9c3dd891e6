"""Test outputs that cannot be written, missing libraries, and runs that are stopped."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import intaglio
from tests.conftest import onnxruntime_library
from tests.integration.conftest import PROMPT, Command, check, with_mounts


@pytest.mark.parametrize("flag", ["--output", "--latents-out", "--report"])
@pytest.mark.parametrize(
    ("output", "says"),
    [("folder", "it is a folder"), ("none/a.png", "there is no folder"), ("new/", "no folder"),
     ("a" * 300, "File name too long"), ("/proc/a.png", "cannot write"), ("/dev/full", "No space")],
)  # fmt: skip
def test_outputs_that_cannot_be_written(
    command: Command, forked_bundle: Path, flag: str, output: str, says: str
) -> None:
    (command.folder / "folder").mkdir()
    flags = ["--prompt", PROMPT, "--steps", 1, "-o", "/dev/null", flag, output]
    if flag == "--output":
        del flags[4:6]
    check(command, 3, says, "generate", forked_bundle, *flags)
    assert Path("/dev/full").is_char_device()
    assert Path("/dev/null").is_char_device()


def test_python_cannot_save_there_either(
    pipeline: intaglio.Pipeline, command: Command, forked_bundle: Path
) -> None:
    drawn = pipeline.generate(PROMPT, steps=1)
    flags = ["--prompt", PROMPT, "--steps", 1, "-o", "/dev/full"]
    sentence = check(command, 3, "No space", "generate", forked_bundle, *flags)
    with pytest.raises(intaglio.InputError) as raised:
        drawn.save("/dev/full")
    assert str(raised.value) == sentence
    with pytest.raises(intaglio.InputError, match="cannot write"):
        drawn.save(command.folder / "none" / "a.png")


def test_numbered_output_that_is_a_folder(command: Command, forked_bundle: Path) -> None:
    (command.folder / "image-1.png").mkdir()
    check(command, 3, "it is a folder", "generate", forked_bundle, "--prompt", "x", "--batch", 2)


def test_links_and_devices_stay_what_they_are(command: Command, forked_bundle: Path) -> None:
    link, target = command.folder / "link.png", command.folder / "target.png"
    target.write_text("old")
    link.symlink_to(target.name)
    command.draw(forked_bundle, "--steps", 1, "-o", link)
    assert link.is_symlink()
    assert target.read_bytes().startswith(b"\x89PNG")
    piped = command(
        "generate", forked_bundle, "--prompt", PROMPT, "--steps", 1, "-o", "/dev/stdout"
    )
    assert piped.stdout.startswith("\\x89PNG")
    assert Path("/dev/stdout").is_symlink()


def test_disk_full(command: Command, forked_bundle: Path) -> None:
    """The picture does not fit on a disk of 16 kB."""
    mount = 'mount -t tmpfs -o size=16k tmpfs "$0" && cd "$0" && "$@"; code=$?; ls -A; exit $code'
    space = with_mounts(mount, command.folder)
    large = ["--steps", "1", "--height", "128", "--width", "128"]
    line = command.line("generate", forked_bundle, "--prompt", PROMPT, *large)
    done = subprocess.run([*space, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == "intaglio: cannot write image.png: No space left on device\n"
    assert done.stdout == ""  # ls found no file


def test_file_size_limit(command: Command, forked_bundle: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    flags = ["--prompt", PROMPT, "--steps", 1]
    check(command, 3, "File too large", "generate", forked_bundle, *flags, preexec_fn=limit)


@pytest.mark.parametrize(
    "args", [["inspect", "BUNDLE"], ["inspect", "BUNDLE", "--json"], ["--help"]]
)
def test_full_standard_output(command: Command, forked_bundle: Path, args: list[str]) -> None:
    line = command.line(*(forked_bundle if arg == "BUNDLE" else arg for arg in args))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert re.fullmatch(r"intaglio: cannot write to standard output[^\n]*\n", done.stderr)


UNAVAILABLE = {
    "absent library": (["--onnxruntime", "/nowhere/library.so"], "cannot open shared object"),
    "foreign library": (["--onnxruntime", "libm.so.6"], "libm.so.6 is not ONNX Runtime"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_what_is_not_there(command: Command, forked_bundle: Path, name: str) -> None:
    flags, says = UNAVAILABLE[name]
    sentence = check(command, 4, says, "generate", forked_bundle, "--prompt", PROMPT, *flags)
    # This runs in a new process, because the current one may have loaded ONNX Runtime.
    code = "import sys, intaglio; intaglio.Pipeline.open(sys.argv[1], **{sys.argv[2]: sys.argv[3]})"
    words = [sys.executable, "-c", code, str(forked_bundle), flags[0][2:], flags[1]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == f"intaglio.UnavailableError: {sentence}"


def test_another_library_than_the_loaded_one(forked_bundle: Path) -> None:
    intaglio.Pipeline.open(forked_bundle, onnxruntime=onnxruntime_library())
    with pytest.raises(intaglio.UnavailableError, match="has loaded ONNX Runtime from "):
        intaglio.Pipeline.open(forked_bundle, onnxruntime="libm.so.6")


def test_out_of_memory(command: Command, forked_bundle: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    flags = ["--prompt", PROMPT, "--batch", 10**8]
    sentence = check(
        command,
        5,
        "use a smaller size or batch",
        "generate",
        forked_bundle,
        *flags,
        preexec_fn=limit,
    )
    code = "import sys, intaglio; intaglio.Pipeline.open(sys.argv[1]).generate('x', batch=10**8)"
    words = [sys.executable, "-c", code, str(forked_bundle)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.stderr.splitlines()[-1] == f"intaglio.OutOfMemoryError: {sentence}"


def catches_interrupts(process: subprocess.Popen[str]) -> bool:
    """Return whether the process has installed its handler of Ctrl-C."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"^SigCgt:\s*(\S+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return bool(caught >> (signal.SIGINT - 1) & 1)


def test_ctrl_c(command: Command, forked_bundle: Path) -> None:
    flags = ["--steps", 10000, "--latents-out", "a.npy", "--report", "a.json"]
    line = command.line("generate", forked_bundle, "--prompt", PROMPT, *flags)
    with subprocess.Popen(
        line, cwd=command.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not catches_interrupts(process):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"intaglio: stopped after step \d+ of 10000\n", said)
    assert list(command.folder.iterdir()) == []


def test_callback_that_stops(pipeline: intaglio.Pipeline) -> None:
    with pytest.raises(intaglio.Interrupted, match="stopped after step 2 of 4") as raised:
        pipeline.generate(PROMPT, steps=4, on_step=lambda step: step.step < 1)
    assert raised.value.exit_code == 130
