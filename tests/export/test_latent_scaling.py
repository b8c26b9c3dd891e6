"""The numbers between the latents of the VAE and those of the transformer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from intaglio_export.errors import ExportError
from intaglio_export.sources import open_source
from tests import bundles


@pytest.mark.reported("huggingface/diffusers#6923", "huggingface/diffusers#1460")
@pytest.mark.parametrize("name", ["scaling_factor", "shift_factor"])
@pytest.mark.parametrize("family", ["sd3", "flux-dev"])
def test_a_factor_that_is_missing_is_not_guessed(tmp_path: Path, family: str, name: str) -> None:
    """A VAE without the scale or the shift that diffusers' pipeline needs is refused."""
    folder = tmp_path / "model"
    shutil.copytree(bundles.source(family), folder)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: None}))
    pipeline = open_source(bundles.source(family)).adapter.pipeline
    pipeline.vae.register_to_config(**{name: None})
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 32, "num_inference_steps": 1, "max_sequence_length": 16}
    with pytest.raises(TypeError, match="NoneType"):
        pipeline("a boot", **size)
    with pytest.raises(ExportError, match=f"vae/config.json has the {name} None"):
        open_source(folder)


@pytest.mark.parametrize("family", ["sd3", "flux-dev"])
def test_a_factor_of_zero_is_a_number(tmp_path: Path, family: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundles.source(family), folder)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": 0}))
    assert np.isclose(open_source(folder).adapter.latent().shift_factor, 0)
