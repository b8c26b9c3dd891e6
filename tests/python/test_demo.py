"""The demo's pictures and page."""

from __future__ import annotations

import re
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
