"""Paths that hold more than letters, and the permissions of what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from intaglio.deploy.output import copy, temporary_output
from intaglio_export import exporter
from intaglio_export.bundle.output_folder import replacing
from intaglio_export.engines.report import as_text
from tests.export.test_cli import Run, assert_refused, run

__all__ = ["run"]  # a fixture


@pytest.mark.reported("bytedance/trae-agent#422", "agent0ai/agent-zero#1606")
@pytest.mark.parametrize("name", ["sd3[bold]", "runs[/]", "[link=x]", "a:fox_face:b"])
def test_a_path_is_no_markup(
    run: Run, forked_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Brackets and colons in a path are printed as they are, and end nothing."""
    manifest = json.loads((forked_bundle / "bundle.json").read_text("utf-8"))
    result = exporter.ExportResult(manifest, {"graph": 0.0}, [f"remark on {name}"])
    monkeypatch.setattr(exporter, "export_bundle", lambda *_: result)
    done = run("source", "-o", name)
    assert done.exit_code == 0, done.stderr
    assert f"bundle    {name} (" in done.stdout
    assert f"Note: remark on {name}" in done.stderr
    assert as_text(name) == name  # of `intaglio build`


PRINT = """
import json, sys
from intaglio.__main__ import main
from intaglio_export import exporter
manifest = json.load(open(sys.argv[1]))
exporter.export_bundle = lambda *_: exporter.ExportResult(manifest, {"graph": 0.0})
sys.argv = ["intaglio", "export", "source", "-o", "gr\\u00f6\\u00dfe"]
main()
"""


@pytest.mark.reported("freedomofpress/dangerzone#768")
def test_a_path_that_the_locale_cannot_print(forked_bundle: Path) -> None:
    """A path that the encoding of stdout lacks is printed with escapes after an export."""
    line = [sys.executable, "-c", PRINT, str(forked_bundle / "bundle.json")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "größe".encode("ascii", "backslashreplace").decode() in done.stdout


@pytest.mark.reported("openpreserve/jpylyzer#103", "GoogleCloudPlatform/gsutil#1625")
@pytest.mark.parametrize("flag", ["source", "-o", "--lora", "--config", "--settings"])
def test_a_path_that_is_not_utf8_is_refused_before_the_work(
    run: Run, tmp_path: Path, flag: str
) -> None:
    """A path that ONNX or safetensors cannot open is named before anything is exported."""
    odd = os.fsdecode(b"m\xf6del")
    given = {"source": "source", "-o": "out"} | {flag: odd}
    words = [given.pop("source"), *(word for pair in given.items() for word in pair)]
    assert_refused(run(*words), 3, "is not UTF-8", tmp_path)


@pytest.fixture(params=[0o002, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.reported("ipython/ipython#7317", "pvliesdonk/markdown-vault-mcp#958")
@pytest.mark.usefixtures("umask")
def test_what_is_written_has_the_permissions_of_other_files(tmp_path: Path) -> None:
    """Folders and files that are written get the permissions that the umask gives any other."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    program = tmp_path / "program"
    program.touch(0o777)
    with replacing(tmp_path / "bundle"):
        pass
    with temporary_output(tmp_path / "deployment", 0) as work:
        for name in ("file", "program"):
            list(copy(tmp_path / name, work / name, None))

    def mode(path: str) -> str:
        return oct((tmp_path / path).stat().st_mode)

    assert mode("bundle") == mode("deployment") == mode("folder")
    assert mode("deployment/file") == mode("file")
    assert mode("deployment/program") == mode("program")


@pytest.mark.reported("huggingface/transformers#36045", "huggingface/transformers#38323")
@pytest.mark.parametrize("command", ["export", "probe"])
def test_python_without_docstrings_is_named(tmp_path: Path, command: str) -> None:
    """Python's -OO, with which transformers cannot be imported, is named in one sentence."""
    line = [sys.executable, "-OO", "-m", "intaglio", command, "source", "-o", "out"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("intaglio: transformers cannot be imported without docstrings")
    assert done.stderr.count("\n") == 1
