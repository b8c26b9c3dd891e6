"""Nothing is reported to anybody, and nothing is left in the user's home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import onnxruntime_library
from tests.integration.conftest import ENTRY_POINT, EXECUTABLE, PROMPT

EXPORT = "from intaglio_export.bundle import verify; verify.ort.SessionOptions()"


@pytest.mark.parametrize("run", ["command", "entry point", "export"])
def test_onnxruntime_keeps_no_identifier(forked_bundle: Path, tmp_path: Path, run: str) -> None:
    """Its packages do, and send events, unless they are told not to (or run in CI)."""
    home = tmp_path / "home"
    home.mkdir()
    generate = ["generate", forked_bundle, "--prompt", PROMPT, "--steps", "1"]
    generate += ["-o", tmp_path / "image.png", "--onnxruntime", onnxruntime_library()]
    words = {
        "command": [EXECUTABLE, *generate],
        "entry point": [ENTRY_POINT, *generate],
        "export": [sys.executable, "-c", EXPORT],
    }[run]
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = kept | {"HOME": str(home)}
    subprocess.run(words, check=True, capture_output=True, env=environment)
    assert list(home.rglob("*")) == []
