"""Check that files have up to 400 lines and functions up to 60; `make lint` runs it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lizard

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 400
LONGEST_FUNCTION = 60


def tracked() -> list[Path]:
    """Return the source files that git tracks and that exist."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.py", "*.cpp", "*.h", "*.cmake", "*.sh", "Makefile"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def functions(path: Path) -> list[tuple[str, int]]:
    """Return name and lines of each function of a Python or C++ file.

    Only the body of a Python function counts, because many typed options make a long signature.
    """
    if path.suffix == ".py":
        return [
            (node.name, (node.end_lineno or 0) - node.body[0].lineno + 1)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    if path.suffix in {".cpp", ".h"}:
        return [(f.name, f.nloc) for f in lizard.analyze_file(str(path)).function_list]
    return []


def too_long(path: Path) -> Iterator[str]:
    """Yield a sentence for the file and for each function that is too long."""
    lines = len(path.read_text().splitlines())
    if lines > LONGEST_FILE:
        yield f"{path} has {lines} lines; {LONGEST_FILE} are allowed"
    for name, count in functions(path):
        if count > LONGEST_FUNCTION:
            yield f"{path}: {name} has {count} lines; {LONGEST_FUNCTION} are allowed"


def main(paths: list[Path]) -> int:
    """Print what is too long in `paths`, or in the repository. Return the exit code."""
    measured = paths or tracked()
    assert paths or len(measured) > 50, "git lists too few source files"
    found = [line for path in measured for line in too_long(path)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main([Path(word) for word in sys.argv[1:]]))
