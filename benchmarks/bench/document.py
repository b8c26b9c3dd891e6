"""Write one section of docs/performance.md, which several programs share."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

_BEGIN, _END = "<!-- begin {} -->\n", "<!-- end {} -->\n"


def section_parser(module: str, description: str) -> ArgumentParser:
    """The flags that every program with a section of its own has."""
    parser = ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"), help="folder [docs]")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="kept models")
    parser.add_argument("--threads", type=int, default=2, help="for every runtime [2]")
    return parser


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section `name` of the page, or append it where the page has none."""
    before, after = page.read_text("utf-8") if page.exists() else "", ""
    begin, end = _BEGIN.format(name), _END.format(name)
    if begin in before:
        before, _, rest = before.partition(begin)
        after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}", "utf-8")
