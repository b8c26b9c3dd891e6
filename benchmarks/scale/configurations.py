"""Published models' configurations, on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.families.parts import make_clip_tokenizer, make_t5_tokenizer

CLIP_LENGTH = 77
T5_LENGTH = 256


def sd3_medium() -> dict[str, torch.nn.Module]:
    """Stable Diffusion 3 medium without T5: transformer, CLIP-L, CLIP-G and VAE."""
    with torch.device("meta"):
        return {
            "transformer": SD3Transformer2DModel(
                sample_size=128,
                patch_size=2,
                in_channels=16,
                num_layers=24,
                attention_head_dim=64,
                num_attention_heads=24,
                joint_attention_dim=4096,
                caption_projection_dim=1536,
                pooled_projection_dim=2048,
                out_channels=16,
                pos_embed_max_size=192,
            ),
            "text_encoder": _clip(768, 12, 12, "quick_gelu"),
            "text_encoder_2": _clip(1280, 32, 20, "gelu"),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                latent_channels=16,
                sample_size=1024,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
        }


def t5_xxl() -> T5EncoderModel:
    """The encoder that Stable Diffusion 3, FLUX.1 and others have beside CLIP's."""
    config = T5Config(
        d_model=4096,
        d_ff=10240,
        d_kv=64,
        num_heads=64,
        num_layers=24,
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
    )
    with torch.device("meta"):
        return T5EncoderModel(config)


def t5_tokenizer() -> T5Tokenizer:
    """A small vocabulary, prompts of the real length."""
    tokenizer = make_t5_tokenizer()
    tokenizer.model_max_length = T5_LENGTH
    return tokenizer


def _clip(width: int, layers: int, heads: int, act: str) -> CLIPTextModelWithProjection:
    config: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
        "hidden_act": act,
        "eos_token_id": 2,  # as published: it stands for the largest id of a prompt
    }
    return CLIPTextModelWithProjection(CLIPTextConfig(**config))


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A small vocabulary, prompts of the real length."""
    tokenizer = make_clip_tokenizer(pad_token)
    tokenizer.model_max_length = CLIP_LENGTH
    return tokenizer


def flux_dev() -> FluxTransformer2DModel:
    """FLUX.1-dev's transformer."""
    with torch.device("meta"):
        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=19,
            num_single_layers=38,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            guidance_embeds=True,
            axes_dims_rope=(16, 56, 56),
        )
