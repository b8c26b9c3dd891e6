"""FLUX.2-dev from prompt embeddings: distilled guidance, which klein has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import intaglio
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from tests.families import flux2

GUIDANCE, STEPS, SEED = 2.5, 3, 5
SIZE = {"height": 36, "width": 44}


@pytest.mark.exports
def test_a_run_equals_diffusers(tmp_path: Path) -> None:
    pipeline = flux2.make_dev()
    pipeline.set_progress_bar_config(disable=True)
    embeds = torch.randn(1, 24, flux2.TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    drawn: list[np.ndarray] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        drawn.append(tensors["latents"].numpy())
        return {}

    pipeline(
        prompt_embeds=embeds,
        guidance_scale=GUIDANCE,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED),
        callback_on_step_end=keep,
        **SIZE,
    )
    pipeline.save_pretrained(tmp_path / "model")
    request = ExportRequest(tmp_path / "model", tmp_path / "bundle", block=2, channels="7")
    remarks = export_bundle(request).remarks
    assert any("Mistral 3" in remark for remark in remarks)
    save_file({"prompt_embeds": embeds}, tmp_path / "prompt.safetensors")
    ours = intaglio.Pipeline.open(tmp_path / "bundle", threads=1)
    options = {"prompt_embeds": tmp_path / "prompt.safetensors", "seeds": SEED, **SIZE}
    for guidance, near in ((GUIDANCE, True), (4.0, False)):
        got = ours.generate(
            **options, steps=STEPS, distilled_guidance=guidance, cfg_scale=1.0, dg_scale=0.0
        )
        error = np.linalg.norm(got.latents - drawn[-1]) / np.linalg.norm(drawn[-1])
        assert bool(error < 1e-4) is near
    assert ours.bundle.defaults.distilled_guidance == 4.0
