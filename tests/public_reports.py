"""Write docs/public-reports.md from the tests that carry the mark `reported`.

tests/public_reports.toml has the reports that were tried and need no test. `python -m
tests.public_reports` writes the page. A test of its own in tests/structure says when
the page is older than the tests.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/public-reports.md"
HEAD = """# Faults that were reported elsewhere

People reported these faults of other projects in public. Each was tried on Intaglio, and the test
in the last column guards against it. `python -m tests.public_reports` writes this page from the
tests.

| reported in | what holds here | test |
| --- | --- | --- |
"""

TRIED = """
## Tried, without a test of their own

| reported in | what was tried | what happened |
| --- | --- | --- |
"""


@dataclass(frozen=True)
class Reported:
    """One test and the public reports that it comes from."""

    reports: tuple[str, ...]  # each "owner/repository#number", or an address
    holds: str
    test: str

    def row(self) -> str:
        """Return the row of the table."""
        links = ", ".join(link(report) for report in self.reports)
        return f"| {links} | {self.holds} | `{self.test}` |\n"


def link(report: str) -> str:
    """Return the Markdown link of a report; an address is its own text."""
    if "#" not in report:
        return f"<{report}>"
    repository, _, number = report.partition("#")
    return f"[{report}](https://github.com/{repository}/issues/{number})"


def reported_by(decorators: list[ast.expr]) -> tuple[str, ...]:
    """Return the arguments of `@pytest.mark.reported(...)` among the decorators."""
    for call in decorators:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.reported":
            return tuple(str(ast.literal_eval(argument)) for argument in call.args)
    return ()


def collect() -> list[Reported]:
    """Return all marked tests in the order of their files."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if reports := reported_by(node.decorator_list):
                sentence = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
                name = f"{path.relative_to(ROOT)}::{node.name}"
                assert sentence, f"{name} needs a docstring that says what holds"
                found.append(Reported(reports, sentence, name))
    return found


def page() -> str:
    """Return the whole page."""
    guarded = "".join(test.row() for test in collect())
    tried = tomllib.loads((ROOT / "tests/public_reports.toml").read_text(encoding="utf-8"))
    rows = [
        f"| {', '.join(map(link, entry['reports']))} | {entry['what']} | {entry['result']} |\n"
        for entry in tried["tried"]
    ]
    return HEAD + guarded + TRIED + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
