"""The command under test, and one opened pipeline."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import pytest

import intaglio
from tests.conftest import onnxruntime_library

ROOT = Path(__file__).parents[2]
EXECUTABLE = ROOT / "build" / "release" / "cpp" / "intaglio"
ENTRY_POINT = Path(sysconfig.get_path("scripts")) / "intaglio"
PROMPT = "the dark boot"
RUNNERS = {"generate", "embed", "bench", "devices"}


@dataclass(frozen=True)
class Command:
    """An executable that is called as a person would, in a folder of its own."""

    program: Path
    folder: Path

    def line(self, *args: Any) -> list[str]:
        words = [os.fspath(a) if isinstance(a, os.PathLike) else a for a in args]
        words = [w if isinstance(w, str | bytes) else str(w) for w in words]
        given = any(str(w).startswith("--onnxruntime") for w in words)
        if self.program == EXECUTABLE and not given and RUNNERS & set(words[:1]):
            words += ["--onnxruntime", str(onnxruntime_library())]
        return [str(self.program), *words]

    def __call__(self, *args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(*args), cwd=self.folder, capture_output=True, timeout=100, check=False,
            text=True, errors="backslashreplace", **options,
        )  # fmt: skip

    def draw(self, bundle: Path, *args: Any) -> None:
        """`generate` on the shared prompt; fails with what it says when it does not succeed."""
        prompt = () if "--prompt" in args else ("--prompt", PROMPT)
        done = self("generate", bundle, *prompt, *args)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


def in_python(sentence: str) -> str:
    """Return what Python says instead: it names keywords where the command names flags. Commands in
    backticks and quoted text are the same."""
    parameters = {**signature(intaglio.Pipeline.generate).parameters}
    parameters |= signature(intaglio.Pipeline.open).parameters
    others = {"class": "class_label", "seed": "seeds", "latents_in": "latents"}

    def keyword(flag: re.Match[str]) -> str:
        name = flag[1].replace("-", "_")
        name = others.get(name, name)
        return name if name in parameters else flag[0]

    parts = re.split(r'(`[^`]*`|"[^"]*")', sentence)
    parts[::2] = [re.sub(r"(?<![\w/-])--([a-z-]+)", keyword, part) for part in parts[::2]]
    return "".join(parts)


def check(command: Command, code: int, says: str, *args: Any, **options: Any) -> str:
    """Runs it; the sentence without the program's name."""
    before = sorted(command.folder.rglob("*"))
    done = command(*args, **options)
    assert done.returncode == code, done.stderr
    assert re.fullmatch(r"intaglio: [^\n]+\n", done.stderr), done.stderr
    assert says in done.stderr
    assert sorted(command.folder.rglob("*")) == before
    return done.stderr.removeprefix("intaglio: ").rstrip("\n")


def absent(why: str) -> NoReturn:
    """Skip a test that this machine cannot run; CI must be able to run them all."""
    if "CI" in os.environ:
        pytest.fail(why)
    pytest.skip(why)


def with_mounts(script: str, folder: Path) -> list[str]:
    """Command words that run `script` ($0: the folder, $@: what follows) where it may mount.

    The mounts are gone with the process. Skips where nobody may do that, which is never in CI.
    """
    for way in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        trial = [*way, "sh", "-c", 'mount -t tmpfs tmpfs "$0"', str(folder)]
        if shutil.which("unshare") and not subprocess.run(trial, capture_output=True).returncode:
            return [*way, "sh", "-c", script, str(folder)]
    absent("needs root or unprivileged user namespaces")


@pytest.fixture(scope="session")
def gpu_build() -> Path:
    """The library of onnxruntime-gpu; skips where nobody has got it, which is never in CI."""
    return build_of_onnxruntime("gpu")


@pytest.fixture(scope="session")
def webgpu_build() -> Path:
    """The library of onnxruntime-webgpu; skips where nobody has got it, which is never in CI."""
    return build_of_onnxruntime("webgpu")


@pytest.fixture(scope="session")
def openvino_build() -> Path:
    """The library of onnxruntime-openvino; skips where nobody has got it, which is never in CI."""
    return build_of_onnxruntime("openvino")


def build_of_onnxruntime(name: str) -> Path:
    folder = ROOT / "build" / "deps" / f"onnxruntime-{name}"
    for library in folder.glob("libonnxruntime.so.*"):
        return library
    absent(f"needs onnxruntime-{name}: make build/deps/onnxruntime-{name}/ready")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The C++ executable, run in an empty folder."""
    assert EXECUTABLE.exists(), "build it first: cmake --build --preset release"
    folder = tmp_path / "work"
    folder.mkdir()
    return Command(EXECUTABLE, folder)


@pytest.fixture
def entry_point(command: Command) -> Command:
    """The Python entry point, run in the same folder."""
    return Command(ENTRY_POINT, command.folder)


@pytest.fixture(scope="session")
def pipeline(forked_bundle: Path) -> intaglio.Pipeline:
    return intaglio.Pipeline.open(forked_bundle)
