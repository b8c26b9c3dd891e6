"""Z-Image, small and random, with Qwen3 as its text encoder."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from tests.byte_level import qwen_like
from tests.families.parts import make_vae

PLANTED = 7
TEXT_WIDTH = 40
WIDTH = 40
TOKENS = 8 * 10  # of images of 32 x 40 pixels; the model fills them up to 96
MAX_LENGTH = 72  # more than two multiples of 32, to which the model fills up a prompt


def make_pipeline(shift: float = 6.0) -> ZImagePipeline:
    """Two refiner blocks of each kind and four joint ones of 60 channels in three heads."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=60,
        n_layers=4,
        n_refiner_layers=2,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 6, 10],
        axes_lens=[160, 48, 64],
    ).eval()
    with torch.no_grad():
        transformer.all_x_embedder["2-1"].bias[PLANTED] += 10.0
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
        for name, parameter in transformer.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
        for block in transformer.layers:  # or the prompt would hardly show
            block.attention.norm_q.weight *= 3.0
            block.attention_norm2.weight *= 6.0
    tokenizer = qwen_like()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
    )
    encoder = Qwen3Model(config).eval()
    return ZImagePipeline(
        transformer=transformer,
        vae=make_vae(scaling_factor=0.36, shift_factor=0.11),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
