"""Files up to 400 lines, functions up to 60."""

import subprocess
from pathlib import Path

import lizard
import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 400
LONGEST_FUNCTION = 60


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.py", "*.cpp", "*.h", "*.cmake", "*.sh", "Makefile"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_there_is_something_to_measure() -> None:
    assert len(tracked()) > 50


@pytest.mark.parametrize("path", tracked(), ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    if path.suffix in {".py", ".cpp", ".h"}:
        functions = lizard.analyze_file(str(path)).function_list
        # Without its docstring or comments: what has to be held in the head at once.
        assert [f.long_name for f in functions if f.nloc > LONGEST_FUNCTION] == []
