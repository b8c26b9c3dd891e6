"""Write one section of docs/performance.md, which several programs share."""

from __future__ import annotations

from pathlib import Path

_BEGIN, _END = "<!-- begin {} -->\n", "<!-- end {} -->\n"


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section `name` of the page, or append it where the page has none."""
    before, after = page.read_text("utf-8") if page.exists() else "", ""
    begin, end = _BEGIN.format(name), _END.format(name)
    if begin in before:
        before, _, rest = before.partition(begin)
        after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}", "utf-8")
