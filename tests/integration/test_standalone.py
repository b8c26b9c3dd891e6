"""The executable on a machine with nothing else on it but /proc: no Python, no shell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import onnxruntime_library
from tests.integration.conftest import EXECUTABLE, PROMPT, with_mounts

SEARCHED = Path("usr/lib")  # where the libraries lie in there


# ONNX Runtime reads /proc. The mount is gone with the process: the name space is its own.
ENTER = 'mount --rbind /proc "$0/proc" && exec chroot "$0" "$@"'


def linked(*programs: Path) -> set[Path]:
    """The shared libraries, and the loader, that ldd lists."""
    listed = subprocess.run(["ldd", *programs], check=True, capture_output=True, text=True).stdout
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, forked_bundle: Path) -> Path:
    """A file system of the bundle, the executable and its libraries."""
    root = tmp_path_factory.mktemp("root")
    runtime = onnxruntime_library()
    libraries = linked(EXECUTABLE, runtime)
    assert any(library.name.startswith("libintaglio.so") for library in libraries)
    (root / SEARCHED).mkdir(parents=True)
    (root / "proc").mkdir()
    for library in libraries:
        if library.name.startswith("ld-"):  # the kernel starts programs through this very path
            target = root / library.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
        else:
            target = root / SEARCHED / library.name
        shutil.copy(library, target)
    shutil.copy(runtime, root / SEARCHED / "libonnxruntime.so.1")
    shutil.copy(EXECUTABLE, root / "intaglio")
    shutil.copytree(forked_bundle, root / "bundle")
    return root


def test_draws_with_nothing_else_on_the_machine(root: Path) -> None:
    command = ["/intaglio", "generate", "/bundle", "--prompt", PROMPT, "--steps", "2"]
    command += ["--height", "24", "--seed", "5", "-o", "/out.png", "--report", "/report.json"]
    environment = {"LD_LIBRARY_PATH": f"/{SEARCHED}"}
    done = subprocess.run(
        [*with_mounts(ENTER, root), *command], env=environment | {"PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "/out.png\n"), done.stderr
    with Image.open(root / "out.png") as image:
        image.load()
        assert (image.size, image.mode) == ((32, 24), "RGB")
        assert len(image.getcolors(32 * 24) or []) > 50  # a picture, not one colour
        assert image.text["Description"] == PROMPT
        options = json.loads(image.text["intaglio:options"])
    assert (options["seeds"], options["steps"], options["height"]) == ([5], 2, 24)
    assert json.loads((root / "report.json").read_text())["options"] == options


def test_says_what_is_missing_without_onnxruntime(root: Path) -> None:
    library = root / SEARCHED / "libonnxruntime.so.1"
    aside = library.rename(root / "aside")
    try:
        done = subprocess.run(
            [*with_mounts(ENTER, root), "/intaglio", "generate", "/bundle", "--prompt", PROMPT],
            env={"LD_LIBRARY_PATH": f"/{SEARCHED}", "PATH": os.environ["PATH"]},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        aside.rename(library)
    assert done.returncode == 4
    assert re.fullmatch(r"intaglio: no usable ONNX Runtime library: .*\n", done.stderr)
    assert not (root / "image.png").exists()
