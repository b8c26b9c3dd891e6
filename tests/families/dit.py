"""DiT-XL/2, small and random."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from tests.families.parts import make_vae

PLANTED = 7
SIZE = 16


def make_pipeline() -> DiTPipeline:
    """Four blocks of 64 channels, a thousand classes, learned sigma."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).eval()
    with torch.no_grad():
        transformer.pos_embed.proj.bias[PLANTED] += 400.0
    scheduler = DDIMScheduler(clip_sample=False)
    return DiTPipeline(transformer=transformer, vae=make_vae(0.18, None), scheduler=scheduler)
