"""Krea 2, small and random: the base model, and the one that is distilled."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLModel

from tests.families import qwen_image

PLANTED = 7
TEXT_WIDTH, TAPS = 12, (1, 3, 4)
HIDDEN = 60


def make_base() -> Krea2Pipeline:
    return make_pipeline(distilled=False)


def make_pipeline(distilled: bool) -> Krea2Pipeline:
    """Four blocks of `HIDDEN` channels, three heads of which share a key, and unequal RoPE axes."""
    torch.manual_seed(0)
    pipeline = Krea2Pipeline(
        transformer=make_transformer(),
        vae=qwen_image.make_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=6400,
        ),
        text_encoder=None,
        tokenizer=None,
        text_encoder_select_layers=TAPS,
        is_distilled=distilled,
    )
    around = [pipeline.prompt_template_encode_prefix, pipeline.prompt_template_encode_suffix]
    tokenizer = qwen_image.make_tokenizer(*around)
    pipeline.register_modules(tokenizer=tokenizer, text_encoder=make_text_encoder(tokenizer))
    return pipeline


def make_transformer() -> Krea2Transformer2DModel:
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=4,
        attention_head_dim=20,
        num_attention_heads=3,
        num_key_value_heads=1,
        intermediate_size=72,
        timestep_embed_dim=24,
        text_hidden_dim=TEXT_WIDTH,
        num_text_layers=len(TAPS),
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=20,
        axes_dims_rope=(4, 10, 6),
    ).eval()
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "scale_shift_table" in name or ".norm" in name:  # they begin as zeros
                parameter.normal_(0.0, 0.3)
        transformer.img_in.bias[PLANTED] += 80.0
        for block in transformer.transformer_blocks:
            block.attn.to_out[0].weight *= 100.0  # or the prompt would hardly show
    return transformer


def make_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3VLModel:
    """A layer more than the pipeline takes, and a small eye."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": max(TAPS) + 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
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
        "out_hidden_size": TEXT_WIDTH,
        "intermediate_size": 24,
        "deepstack_visual_indexes": [0],
    }
    encoder = Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():  # prompts of a random encoder differ too little to tell modes apart
        for name, parameter in encoder.named_parameters():
            if "norm" not in name:
                parameter.mul_(4.0)
    return encoder
