"""The demo's pictures and page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import intaglio
from intaglio import demo


def test_demo_writes_what_its_page_shows(forked_bundle: Path, tmp_path: Path) -> None:
    demo.write_demo(intaglio.Pipeline.open(forked_bundle), tmp_path)
    page = (tmp_path / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 1 + 4 * len(demo.PROMPTS) * len(demo.SEEDS)
    for source in sources:
        with Image.open(tmp_path / source) as image:
            image.verify()
    assert "http" not in page
    assert "index.html" in (tmp_path / "summary.txt").read_text()


def test_a_missing_bundle_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["demo", str(tmp_path / "nothing"), "-o", str(tmp_path / "o")])
    assert demo.main() == intaglio.InputError.exit_code
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.reported("kensho-technologies/pyctcdecode#89")
def test_the_page_is_utf8_in_any_locale(forked_bundle: Path, tmp_path: Path) -> None:
    """Pages that say that they are UTF-8 are written so, whatever encoding the locale has."""
    bundle = tmp_path / "bundle"
    shutil.copytree(forked_bundle, bundle)
    manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
    manifest["name"] = "größer ✓"
    (bundle / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = [sys.executable, "-m", "intaglio.demo", str(bundle), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        line, env=os.environ | ascii_locale, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert manifest["name"] in (tmp_path / "out" / "index.html").read_text("utf-8")
