"""The tiny pipelines of every family as save_pretrained writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.sources import FAMILIES


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family. Copy one to change it."""
    root = tmp_path_factory.mktemp("folders")
    for family, make in FAMILIES.items():
        make().save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}
