"""Run the command for Windows under Wine: paths, messages, Ctrl-C, a full disk (windows.sh)."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

WINE = shutil.which("wine") or "wine"
COMMAND = Path("build/windows/bin/intaglio.exe")
BAD_INPUT, INTERRUPTED = 3, 130  # exit codes (cpp/include/intaglio/error.h)
LETTERS = "Büste 画像"  # of two alphabets, so that no code page of Windows has them all
ESCAPES = re.compile(rb"\x1b\[[?0-9;]*[a-zA-Z]")


def on_drive_z(path: Path) -> str:
    """Return the path as Windows writes it; Wine shows the root folder as the drive Z."""
    return "Z:" + str(path.resolve()).replace("/", "\\")


def run(*words: str, code: int = 0) -> str:
    """Run the command and return what it prints."""
    ended = subprocess.run([WINE, COMMAND, *words], capture_output=True, text=True, check=False)
    printed = ended.stdout + ended.stderr
    assert ended.returncode == code, (words, ended.returncode, printed)
    return printed


def interrupt(words: list[str], after: bytes) -> tuple[int, str]:
    """Press Ctrl-C when the command has printed `after`. Return its exit code and its output."""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(WINE, [WINE, str(COMMAND), *words])
    printed, pressed, end = b"", False, time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            try:
                printed += os.read(terminal, 4096)
            except OSError:  # the command has ended
                break
        if not pressed and after in ESCAPES.sub(b"", printed):
            os.write(terminal, b"\x03")
            pressed = True
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, ESCAPES.sub(b"", printed).decode(errors="replace")


def main(bundle: Path, library: Path, out: Path, drawn: list[str]) -> None:
    folder = out / LETTERS
    shutil.copytree(bundle, folder / bundle.name)
    shutil.copy(library, folder)
    words = ["generate", on_drive_z(folder / bundle.name)]
    words += ["--onnxruntime", on_drive_z(folder / library.name)]

    picture = folder / f"{LETTERS}.png"
    latents = on_drive_z(out / "windows.npy")
    printed = run(*words, *drawn, "-o", on_drive_z(picture), "--latents-out", latents)
    assert on_drive_z(picture) in printed, printed  # Wine has no DXGI, which ONNX Runtime says
    with Image.open(picture) as image, Image.open(out / "here.png") as here:
        assert image.size == here.size
        assert image.text == here.text  # with the prompt
    print("generate: drawn into a folder with a name outside ASCII, with the prompt in the picture")

    message = run(*words, "--prompt", "x", "-o", f"Z:\\{LETTERS}\\x.png", code=BAD_INPUT)
    assert f"Z:\\{LETTERS}" in message, message
    print("a path that does not exist is named as it was given")

    stopped = folder / "stopped.png"
    long = [*words, "--prompt", "x", "--steps", "500", "-o", on_drive_z(stopped)]
    code, printed = interrupt(long, after=b"denoising")
    assert code == INTERRUPTED, (code, printed)
    assert not stopped.exists()
    print("Ctrl-C: the run stopped and wrote nothing")

    disk = out / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(disk)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        print("a full disk: not tried, since only root can mount one")
        return
    try:
        filler = disk / "filler"
        filler.write_bytes(bytes(4096))
        full = on_drive_z(disk / "picture.png")
        message = run(*words, *drawn, "-o", full, code=BAD_INPUT)
        assert re.search("cannot write .*: No space left on device", message), message
        assert list(disk.iterdir()) == [filler]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    print("a full disk: refused in a sentence, and nothing was left there")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4:])
