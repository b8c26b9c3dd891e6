"""The example as a project of its own, against every installed tree, and its Python mirror."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import onnxruntime_library
from tests.integration.conftest import PROMPT, ROOT

EXAMPLES = ROOT / "cpp" / "examples"
CMAKE = shutil.which("cmake") or str(Path(sysconfig.get_path("scripts")) / "cmake")


def run(*words: str | Path, folder: Path | None = None) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session", params=["installed", "wheel"])
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built out of tree against a prefix, or against the Python package."""
    work = tmp_path_factory.mktemp(request.param)
    prefix = Path(sysconfig.get_path("platlib")) / "intaglio"
    if request.param == "installed":
        prefix = work / "prefix"
        run(CMAKE, "--install", ROOT / "build" / "release", "--prefix", prefix)
    shutil.copytree(EXAMPLES, work / "source")
    paths = ["-S", work / "source", "-B", work / "build", f"-DCMAKE_PREFIX_PATH={prefix}"]
    run(CMAKE, *paths, "-DCMAKE_BUILD_TYPE=Release")
    found = re.search(
        r"^intaglio_DIR:PATH=(.*)$", (work / "build/CMakeCache.txt").read_text(), re.M
    )
    assert found
    assert Path(found[1]).is_relative_to(prefix)
    run(CMAKE, "--build", work / "build")
    return work / "build" / "generate"


def test_example_draws_what_its_python_mirror_draws(
    example: Path, forked_bundle: Path, tmp_path: Path
) -> None:
    said = run(example, forked_bundle, PROMPT, tmp_path / "cpp.png", onnxruntime_library())
    mirror = run(
        sys.executable, EXAMPLES / "generate.py", forked_bundle, PROMPT, tmp_path / "python.png"
    )
    assert said == mirror
    assert re.fullmatch(r"(step \d of 4, sigma \d\.\d{4}\n){4}", said)
    assert (tmp_path / "cpp.png").read_bytes() == (tmp_path / "python.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpp.png", "python.png"]


def test_examples_report_the_same_error(example: Path, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "no-bundle"), PROMPT, str(tmp_path / "out.png")]
    both = [
        subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
        for program in ([example], [sys.executable, EXAMPLES / "generate.py"])
    ]
    assert [done.returncode for done in both] == [3, 3]
    assert both[0].stderr == both[1].stderr
    assert "there is no folder " in both[0].stderr


def test_example_is_short() -> None:
    assert len((EXAMPLES / "generate.cpp").read_text().splitlines()) < 40
