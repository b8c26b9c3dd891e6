"""Generated pages of docs/ hold what the tests would put there."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from intaglio_export.options import LAYOUTS
from intaglio_export.precision import DTYPES
from tests.families import FAMILIES

ROOT = Path(__file__).parents[2]


def test_the_parity_table_has_every_cell() -> None:
    """`make parity` writes it; a family, layout or precision that is new has to be in it."""
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (\S+) \|((?: \d\.\de[-+]\d+ \|){4})$", page, re.M)
    assert {row[:3] for row in rows} == set(product(FAMILIES, DTYPES, LAYOUTS))


SOURCES = {
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd3.5": "stabilityai/stable-diffusion-3.5-medium",
    "flux-dev": "black-forest-labs/FLUX.1-dev",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
    "flux-dedistilled": "path/to/flux-dedistilled",
    "flux2-klein": "black-forest-labs/FLUX.2-klein-4B",
    "dit": "facebook/DiT-XL-2-256",
    "pixart-sigma": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "qwen-image": "Qwen/Qwen-Image",
    "chroma": "lodestones/Chroma1-HD",
    "z-image": "Tongyi-MAI/Z-Image-Turbo",
    "krea2": "krea/Krea-2-Raw",
}


def test_the_models_page_has_commands_for_every_family() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    exported = dict(re.findall(r"^intaglio export (\S+) -o (bundles/\S+)", page, re.M))
    for family in FAMILIES:
        assert f"intaglio generate {exported[SOURCES[family]]} " in page


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
