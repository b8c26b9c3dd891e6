"""One opened pipeline for each layout."""

from __future__ import annotations

from pathlib import Path

import pytest

import intaglio

PROMPT = "the dark boot"


@pytest.fixture(scope="session")
def pipeline(bundle: Path) -> intaglio.Pipeline:
    """The tiny pipeline, in each layout: 4 steps of 32x32, CFG and DG on."""
    return intaglio.Pipeline.open(bundle)


@pytest.fixture(scope="session")
def forked(forked_bundle: Path) -> intaglio.Pipeline:
    """The forked one, for tests that do not depend on the layout."""
    return intaglio.Pipeline.open(forked_bundle)
