"""PixArt-Sigma, small and random."""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

from tests.families.parts import make_t5, make_t5_tokenizer, make_vae

PLANTED = 7


def make_pipeline() -> PixArtSigmaPipeline:
    """Four blocks of 64 channels, learned sigma, cross-attention to T5."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=16,
        patch_size=2,
        cross_attention_dim=64,
        caption_channels=48,
        interpolation_scale=1,
        use_additional_conditions=False,
    ).eval()
    with torch.no_grad():
        transformer.pos_embed.proj.bias[PLANTED] += 400.0
        for block in transformer.transformer_blocks:
            block.attn2.to_out[0].weight *= 20.0  # or the prompt would hardly show
    tokenizer = make_t5_tokenizer()
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=make_t5(tokenizer, 48),
        vae=make_vae(0.13, None),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(num_train_timesteps=300),
    )
