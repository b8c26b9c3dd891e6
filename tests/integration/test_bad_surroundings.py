"""Test outputs that cannot be written, missing libraries, and runs that are stopped."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import intaglio
from tests.conftest import onnxruntime_library
from tests.integration.conftest import PROMPT, Command, check, in_python, with_mounts


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
    assert str(raised.value) == in_python(sentence)
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
    assert piped.stdout.endswith("IEND\\xaeB`\\x82")  # and no name of a file after it
    assert Path("/dev/stdout").is_symlink()


# Every file that the command writes.
OUTPUTS = ["--steps", "1", "-o", "a.png", "--latents-out", "a.npy", "--report", "a.json"]
NAMES = ["a.json", "a.npy", "a.png"]


def written(folder: Path, pipeline: intaglio.Pipeline) -> None:
    """Check that the files of OUTPUTS are complete, and that there are no others."""
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    expected = pipeline.generate(PROMPT, steps=1)
    np.testing.assert_array_equal(np.load(folder / "a.npy"), expected.latents)
    assert json.loads((folder / "a.json").read_text())["options"]["steps"] == 1
    with Image.open(folder / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.images[0]))


@pytest.mark.reported("pallets/click#1512", "vllm-project/semantic-router#4027")
@pytest.mark.parametrize("kind", ["file", "file system"])
def test_files_that_are_mounts_are_written_into(
    command: Command, forked_bundle: Path, pipeline: intaglio.Pipeline, tmp_path: Path, kind: str
) -> None:
    """A picture is written into a file that a container mounts by itself, which no rename can
    replace."""
    real = tmp_path / "real"
    real.mkdir()
    for name in NAMES:
        (real / name).write_text("old" * 1000)
        (command.folder / name).touch()
    mount = "for f in " + " ".join(NAMES) + f'; do mount --bind {real}/$f "$0/$f"; done; '
    if kind == "file system":
        mount = f"mount -t tmpfs t {real}; touch {real}/a.png {real}/a.npy {real}/a.json; " + (
            "for f in " + " ".join(NAMES) + f'; do ln -sf {real}/$f "$0/$f"; done; '
        )
    script = mount + f'cd "$0" && "$@"; code=$?; cp {real}/a.* {tmp_path}/out; ls "$0"; exit $code'
    (tmp_path / "out").mkdir()
    space = with_mounts(script, command.folder)
    line = command.line("generate", forked_bundle, "--prompt", PROMPT, *OUTPUTS)
    done = subprocess.run([*space, *line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["a.png", *NAMES]
    written(tmp_path / "out", pipeline)


def test_a_mounted_file_that_is_read_only_is_refused_before_drawing(
    command: Command, forked_bundle: Path, tmp_path: Path
) -> None:
    real = tmp_path / "real"
    real.touch()
    (command.folder / "a.png").touch()
    mount = (
        f'mount --bind {real} "$0/a.png" && mount -o remount,bind,ro "$0/a.png"; cd "$0" && "$@"'
    )
    flags = ["--prompt", PROMPT, "--steps", 10000, "-o", "a.png"]
    line = command.line("generate", forked_bundle, *flags)
    space = with_mounts(mount, command.folder)
    done = subprocess.run([*space, *line], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert done.stderr == "intaglio: cannot write a.png: Read-only file system\n"


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="needs setpriv")
def test_a_file_in_a_folder_that_cannot_be_written(
    command: Command, forked_bundle: Path, tmp_path: Path
) -> None:
    """A file that may be written is written, also where its folder may not be."""
    for name in NAMES:
        (command.folder / name).touch(0o666)
        (command.folder / name).chmod(0o666)
    command.folder.chmod(0o555)
    line = command.line("generate", forked_bundle, "--prompt", PROMPT, *OUTPUTS)
    # Root may write everywhere, but not without its capabilities.
    limited = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*limited, *line], cwd=command.folder, capture_output=True, text=True, check=False
    )
    command.folder.chmod(0o755)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "a.png\n")
    assert (command.folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in command.folder.iterdir()) == NAMES


@pytest.mark.parametrize("mode", ["w", "a"])
def test_standard_output_that_is_a_file(command: Command, forked_bundle: Path, mode: str) -> None:
    """The picture is all that goes to a file that standard output is, after what it holds."""
    target = command.folder / "out"
    target.write_bytes(b"before")
    line = command.line(
        "generate", forked_bundle, "--prompt", PROMPT, "--steps", 1, "-o", "/dev/stdout"
    )
    with target.open(f"{mode}b") as output:
        subprocess.run(line, stdout=output, check=True)
    content = target.read_bytes()
    assert content.startswith(b"before" if mode == "a" else b"\x89PNG")
    with Image.open(io.BytesIO(content.removeprefix(b"before"))) as image:
        image.load()
    assert content.endswith(b"IEND\xaeB`\x82")


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
    assert done.stderr.splitlines()[-1] == f"intaglio.UnavailableError: {in_python(sentence)}"


def test_a_library_that_is_too_old(command: Command, forked_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime 1.22 prints a line of its own when it is asked for a newer interface."""
    source = """
    struct Api { const void* (*get)(unsigned); const char* (*version)(void); };
    int dprintf(int file, const char* text);
    static const void* get(unsigned version) { dprintf(2, "not available"); return 0; }
    static const char* version(void) { return "1.22.1"; }
    static const struct Api api = {get, version};
    const struct Api* OrtGetApiBase(void) { return &api; }
    """
    library = tmp_path / "libonnxruntime.so.1.22.1"
    words = ["g++", "-x", "c", "-", "-shared", "-fPIC", "-w", "-o", str(library)]
    subprocess.run(words, input=source, text=True, check=True)
    says = f"{library} is ONNX Runtime 1.22.1, and version 1."
    line = ["generate", forked_bundle, "--prompt", PROMPT, "--onnxruntime", library]
    assert " or newer is needed" in check(command, 4, says, *line)


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
    assert done.stderr.splitlines()[-1] == f"intaglio.OutOfMemoryError: {in_python(sentence)}"


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
