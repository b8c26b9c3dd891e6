"""FLUX.1, small and random: dev, schnell, dev with its distillation undone, and Kontext."""

from __future__ import annotations

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)

from tests.families.parts import (
    LOUD,
    make_clip,
    make_clip_tokenizer,
    make_t5,
    make_t5_tokenizer,
    make_vae,
)

PLANTED = 7


def make_pipeline(guidance: bool, shifted: bool) -> FluxPipeline:
    """Two double and two single blocks of 64 channels; `shifted`: by the number of tokens."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=48,
        pooled_projection_dim=24,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    with torch.no_grad():
        transformer.x_embedder.bias[PLANTED] += 40.0
    shift = {"base_shift": 0.5, "max_shift": 1.15} if shifted else {}
    clip, t5 = make_clip_tokenizer(), make_t5_tokenizer()
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if shifted else 1.0, use_dynamic_shifting=shifted, **shift
        ),
        vae=make_vae(scaling_factor=0.36, shift_factor=0.11),
        text_encoder=make_clip(clip, 24, "quick_gelu", projected=False),
        tokenizer=clip,
        text_encoder_2=make_t5(t5, 48),
        tokenizer_2=t5,
    )


def make_dev() -> FluxPipeline:
    return make_pipeline(guidance=True, shifted=True)


def make_schnell() -> FluxPipeline:
    return make_pipeline(guidance=False, shifted=False)


def make_dedistilled() -> FluxPipeline:
    return make_pipeline(guidance=False, shifted=True)


def make_kontext() -> FluxKontextPipeline:
    """Its attention and its VAE's encoder are louder, or a reference would hardly show."""
    parts = make_dev().components
    with torch.no_grad():
        for block in parts["transformer"].transformer_blocks:
            block.attn.to_out[0].weight *= LOUD
        parts["vae"].encoder.conv_out.weight *= LOUD
    return FluxKontextPipeline(**parts)
