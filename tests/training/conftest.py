"""Makes `models.training` importable and trains a tiny pipeline folder once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(pipeline folder, working folder) of a run of four steps on 100 images."""
    from models.training import train

    base = tmp_path_factory.mktemp("training")
    assert train.main(tiny_arguments(base, steps=4)) == 0
    return base / "model", base / "work"


def tiny_arguments(base: Path, steps: int) -> list[str]:
    """Arguments of the training script for the tiny model under `base`."""
    options = {
        "out": base / "model",
        "work": base / "work",
        "limit": 100,
        "text-steps": 3,
        "vae-steps": 3,
        "steps": steps,
        "batch": 8,
        "width": 64,
        "blocks": 3,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
