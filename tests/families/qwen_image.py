"""Qwen-Image, small and random."""

from __future__ import annotations

import json

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from tests.byte_level import QWEN, make_backend

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
    pipeline = QwenImagePipeline(
        transformer=transformer,
        vae=make_vae(),
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
    tokenizer = make_tokenizer(pipeline.prompt_template_encode)
    pipeline.register_modules(tokenizer=tokenizer, text_encoder=make_text_encoder(tokenizer))
    return pipeline


def make_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    ).eval()


def make_tokenizer(*template: str) -> Qwen2Tokenizer:
    """Trained on the template, so that this has as many tokens as with Qwen's own vocabulary."""
    model = json.loads(make_backend(QWEN, 700, more=template * 20).to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def make_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Two layers of `WIDTH` channels; six heads share two keys, rotated in three unequal parts."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [1, 1, 2],
            "rope_theta": 10000.0,
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "intermediate_size": 24,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    encoder = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():  # prompts of a random encoder differ too little to tell modes apart
        for name, parameter in encoder.named_parameters():
            if "norm" not in name:
                parameter.mul_(4.0)
        encoder.get_decoder().norm.weight *= 3.0
    return encoder
