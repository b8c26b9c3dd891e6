"""Files up to 400 lines, functions up to 60."""

import ast
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


def python_functions(path: Path) -> dict[str, int]:
    """Lines of each function's body; a signature with many typed options is no burden."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {
        n.name: (n.end_lineno or 0) - n.body[0].lineno + 1
        for n in nodes
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("path", tracked(), ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    functions = {}
    if path.suffix == ".py":
        functions = python_functions(path)
    elif path.suffix in {".cpp", ".h"}:
        functions = {f.name: f.nloc for f in lizard.analyze_file(str(path)).function_list}
    assert {name: n for name, n in functions.items() if n > LONGEST_FUNCTION} == {}
