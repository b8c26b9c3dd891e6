"""docs/performance.md holds what its programs write from the JSON files beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.bench.document import write_section
from benchmarks.bench.page import page
from benchmarks.bench.plain import OPSET
from benchmarks.bench.plots import plot
from benchmarks.scale import report
from tests.serve import load

DOCS = Path(__file__).parents[2] / "docs"


def test_a_section_is_replaced_or_appended(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("# Page\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nby hand\n")
    write_section(document, "a", "new\n\n")
    write_section(document, "b", "other")
    assert document.read_text() == (
        "# Page\n\n<!-- begin a -->\nnew\n<!-- end a -->\n\nby hand\n"
        "<!-- begin b -->\nother\n<!-- end b -->\n"
    )


def test_the_page_shows_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "performance.md"
    shutil.copy(DOCS / "performance.md", copy)
    speed = json.loads((DOCS / "performance.json").read_text("utf-8"))
    write_section(copy, "speed", page(speed, plot(speed, tmp_path), OPSET))
    monkeypatch.setattr(report, "PAGE", copy)
    report.write_page()
    served = json.loads((DOCS / "serving-load.json").read_text("utf-8"))
    points = [load.Point(**point) for point in served["points"]]
    section = load.page(points, served["resident"], served["bundle"], served["remark"])
    write_section(copy, "load", section)
    assert copy.read_text("utf-8") == (DOCS / "performance.md").read_text("utf-8")
