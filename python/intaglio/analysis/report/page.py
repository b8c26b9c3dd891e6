"""The report: sections of sentences, tables and figures, as an HTML page, Markdown and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from intaglio.analysis.report.output_folder import write_whole

FIGURES = "figures"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; numbers are shown with three digits."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]

    def text(self) -> list[list[str]]:
        """Return the cells as text."""
        return [[_cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A PNG, the name of its file, and a sentence that says what it shows."""

    name: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Section:
    """One question: `claims` say what was found, and `numbers` are the figures behind them."""

    title: str
    claims: Sequence[str]
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The report of one model; `about` says what was measured and how."""

    title: str
    about: dict[str, Any]
    sections: Sequence[Section]

    def write(self, folder: Path) -> None:
        """Write index.html, report.md, report.json and the figures to `folder`."""
        (folder / FIGURES).mkdir(exist_ok=True)
        for section in self.sections:
            for figure in section.figures:
                write_whole(folder / FIGURES / figure.name, figure.png)
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("intaglio.analysis.report"),
            autoescape=jinja2.select_autoescape(["html"]),
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        for name in ("index.html", "report.md"):
            text = environment.get_template(name).render(report=self, figures=FIGURES)
            write_whole(folder / name, text.encode())
        numbers = {"title": self.title, "about": self.about} | {
            section.title: {"claims": list(section.claims)} | section.numbers
            for section in self.sections
        }
        text = json.dumps(plain(numbers), indent=1, allow_nan=False, ensure_ascii=False)
        write_whole(folder / "report.json", f"{text}\n".encode())


def _cell(cell: object) -> str:
    if isinstance(cell, bool) or not isinstance(cell, float | np.floating):
        return str(cell)
    return "" if math.isnan(cell) else f"{cell:.3g}"


def plain(value: Any) -> Any:
    """Convert `value` for JSON: arrays to lists of four digits, NaN to null, intervals to dicts."""
    if hasattr(value, "to_json"):
        value = value.to_json()
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
