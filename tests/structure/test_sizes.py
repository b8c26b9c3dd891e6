"""The size rules of `make lint` find what is too long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci" / "sizes.py"


def check(path: Path, text: str) -> tuple[int, str]:
    """Exit code of the script for a file with this text, and what it prints."""
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, SCRIPT, path], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def test_what_is_too_long_is_named(tmp_path: Path) -> None:
    python, cpp = tmp_path / "long.py", tmp_path / "long.cpp"
    assert check(python, "x = 1\n" * 400) == (0, "")
    assert check(python, "x = 1\n" * 401)[0] == 1
    body = "    x = 1\n"
    assert check(python, f"def f(\n    a: int,\n) -> None:\n{body * 60}") == (0, "")
    code, said = check(python, f"def f() -> None:\n{body * 61}")
    assert (code, ": f has 61 lines" in said) == (1, True)
    assert check(cpp, "int f() {\n  g();\n}\n") == (0, "")
    code, said = check(cpp, "int f() {\n" + "  g();\n" * 61 + "}\n")
    assert (code, ": f has 6" in said) == (1, True)
