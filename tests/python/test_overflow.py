"""Values that are too large for the VAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import intaglio
from tests.python.conftest import PROMPT


@pytest.mark.reported("huggingface/diffusers#6815", "AUTOMATIC1111/stable-diffusion-webui#10227")
def test_a_vae_that_overflows_gives_no_black_picture(
    forked: intaglio.Pipeline, sd3_pipeline: StableDiffusion3Pipeline
) -> None:
    """Latents for which the VAE gives NaN are an error instead of a black picture."""
    plain = forked.generate(PROMPT, steps=1, cfg_scale=1, dg_scale=0).latents
    huge = np.full_like(plain, 1e30)
    with torch.no_grad():
        image = sd3_pipeline.vae.decode(torch.from_numpy(huge), return_dict=False)[0]
    assert image.isnan().any()
    options = {"steps": 1, "cfg_scale": 1, "dg_scale": 0, "latents": huge}
    with pytest.raises(intaglio.InputError, match="the VAE decoder gave NaN or infinity"):
        forked.generate(PROMPT, **options)
    seen = []
    with pytest.raises(intaglio.InputError, match="the VAE decoder gave NaN or infinity"):
        forked.generate(PROMPT, on_step=lambda step: seen.append(step.preview()), **options)
    assert not seen
