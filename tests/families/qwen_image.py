"""Qwen-Image, small and random, without its text model."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from tests.families.parts import MAX_LENGTH

PLANTED = 7
WIDTH = 48


def make_pipeline() -> QwenImagePipeline:
    """Four blocks of 64 channels, and a VAE that scales each channel by itself."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    with torch.no_grad():
        transformer.img_in.bias[PLANTED] += 80.0
        for block in transformer.transformer_blocks:
            block.attn.to_out[0].weight *= 300.0  # or the prompt would hardly show
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    ).eval()
    return QwenImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        text_encoder=None,
        tokenizer=None,
    )


def embeddings(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a prompt's embeddings and their mask might be; some of the end is padding."""
    generator = torch.Generator().manual_seed(len(text))
    embeds = 3.0 * torch.randn(1, MAX_LENGTH, WIDTH, generator=generator)
    mask = torch.ones(1, MAX_LENGTH, dtype=torch.int64)
    mask[:, MAX_LENGTH - 1 - len(text) % 5 :] = 0
    return embeds, mask
