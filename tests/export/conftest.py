"""The tiny pipelines of every family as save_pretrained writes them."""

from __future__ import annotations

import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from intaglio.__main__ import GROUP, run_python
from tests.export.engines import Run, build, without_engines
from tests.export.sources import FAMILIES


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family. Copy one to change it."""
    root = tmp_path_factory.mktemp("folders")
    for family, make in FAMILIES.items():
        make().save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture
def folder(folders: dict[str, Path], family: str, tmp_path: Path) -> Path:
    """A copy of the family's folder, to be changed."""
    shutil.copytree(folders[family], tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def built(forked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline's bundle with its engines; copy it to change it."""
    bundle = without_engines(forked_bundle, tmp_path_factory.mktemp("built") / "bundle")
    build(bundle)
    return bundle


@pytest.fixture
def run_build(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command; returns its exit code and what it says."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: Any) -> tuple[int, str, str]:
        code = run_python(
            EntryPoint("build", "intaglio_export.engines.cli:build", GROUP),
            [str(arg) for arg in args],
        )
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
