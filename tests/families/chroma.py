"""Chroma, small and random."""

from __future__ import annotations

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from tests.families.parts import make_t5, make_t5_tokenizer, make_vae

PLANTED = 7


def make_pipeline() -> ChromaPipeline:
    """Three double and two single blocks of 64 channels, modulated by one network of 40."""
    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=48,
        axes_dims_rope=(4, 8, 4),
        approximator_num_channels=24,
        approximator_hidden_dim=40,
        approximator_layers=3,
    ).eval()
    with torch.no_grad():
        transformer.x_embedder.bias[PLANTED] += 40.0
        for block in transformer.transformer_blocks:
            block.attn.to_out[0].weight *= 60.0  # or the prompt would hardly show
    tokenizer = make_t5_tokenizer()
    return ChromaPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
        vae=make_vae(scaling_factor=0.36, shift_factor=0.11),
        text_encoder=make_t5(tokenizer, 48),
        tokenizer=tokenizer,
    )
