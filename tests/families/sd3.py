"""Stable Diffusion 3, and 3.5 with qk-norm and dual attention, small and random."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.families.parts import (
    make_clip,
    make_clip_tokenizer,
    make_t5,
    make_t5_tokenizer,
    make_vae,
)

PLANTED = 7  # the channel that is made massive
BLOCKS = 4


def make_transformer(planted: bool = True, **options: Any) -> SD3Transformer2DModel:
    """Four blocks of 64 channels; `planted` makes channel PLANTED massive on every image token."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=BLOCKS,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=48,
        caption_projection_dim=64,
        pooled_projection_dim=40,
        out_channels=4,
        pos_embed_max_size=32,
        **options,
    ).eval()
    if planted:
        with torch.no_grad():
            transformer.pos_embed.proj.bias[PLANTED] += 40.0
    return transformer


def make_pipeline(
    planted: bool = True, seed: int = 0, t5: bool = False, **options: Any
) -> StableDiffusion3Pipeline:
    """The whole pipeline, float32; `options` are the transformer's."""
    torch.manual_seed(seed)
    first, second = make_clip_tokenizer(), make_clip_tokenizer("!")
    vae = make_vae(scaling_factor=0.7, shift_factor=0.1)
    third = make_t5_tokenizer() if t5 else None
    return StableDiffusion3Pipeline(
        transformer=make_transformer(planted, **options),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=make_clip(first, 16, "quick_gelu"),
        tokenizer=first,
        text_encoder_2=make_clip(second, 24, "gelu"),
        tokenizer_2=second,
        text_encoder_3=make_t5(third, 48) if third else None,
        tokenizer_3=third,
    )


def make_sd35() -> StableDiffusion3Pipeline:
    """With T5, qk-norm, and dual attention in the first two blocks, as SD3.5-medium has it."""
    return make_pipeline(t5=True, qk_norm="rms_norm", dual_attention_layers=(0, 1))
