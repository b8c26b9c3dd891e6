"""The demo's pictures and page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import intaglio
from intaglio import demo


def test_demo_writes_what_its_page_shows(forked_bundle: Path, tmp_path: Path) -> None:
    demo.write_demo(intaglio.Pipeline.open(forked_bundle), tmp_path)
    page = (tmp_path / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    # Each picture is shown once, and those of CFG and of CFG and DG again in a slider.
    assert len(sources) == 1 + 6 * len(demo.PROMPTS) * len(demo.SEEDS)
    for source in sources:
        with Image.open(tmp_path / source) as image:
            image.verify()
    assert "http" not in page
    assert "index.html" in (tmp_path / "summary.txt").read_text()


def test_the_difference_is_grey_where_nothing_changes() -> None:
    before, after = (
        np.array([[value] * 3 for value in row], np.uint8).reshape(1, -1, 3)
        for row in ((0, 9, 9, 9, 200, 10), (0, 10, 8, 30, 10, 200))
    )
    column = ("a dress", 1)
    modes = [
        demo.Mode("", 1.0, 0.0, {column: Image.fromarray(pixels)}, 1.0, 1)
        for pixels in (before, after)
    ]
    shown = np.asarray(demo.difference(*modes, column))[0, :, 0]
    grey, gain = 128, demo.GAIN
    assert shown.tolist() == [grey, grey + gain, grey - gain, grey + 21 * gain, 0, 255]


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
