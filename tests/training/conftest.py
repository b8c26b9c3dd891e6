"""A tiny model, trained for four steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from models.training import train


def tiny_arguments(base: Path, steps: int) -> list[str]:
    """Return arguments of the training program for the tiny model under `base`."""
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
        "threads": 1,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The pipeline folder and the working folder of a run of four steps on 100 images."""
    base = tmp_path_factory.mktemp("training")
    assert train.main(tiny_arguments(base, steps=4)) == 0
    return base / "model", base / "work"


def load(folder: Path) -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(tiny: tuple[Path, Path]) -> StableDiffusion3Pipeline:
    """The tiny pipeline with random weights where training starts at zero, so all blocks matter."""
    made = load(tiny[0])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in made.transformer.named_parameters():
            if "norm" in name or "proj_out" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made
