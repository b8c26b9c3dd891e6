"""Published models' configurations, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.byte_level import qwen_like
from tests.families.parts import make_clip_tokenizer, make_t5_tokenizer

CLIP_LENGTH = 77
T5_LENGTH = 256


@dataclass(frozen=True)
class Configuration:
    """A pipeline of diffusers whose networks have no weights yet.

    `others` are the parts without weights, `options` is what model_index.json says besides parts,
    and `settings` are for settings.json. Tokenizers have a small vocabulary.
    """

    pipeline: str
    networks: Callable[[], dict[str, nn.Module]]
    others: Callable[[], dict[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def sd3_medium() -> dict[str, nn.Module]:
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
            "vae": _vae(1.5305, 0.0609),
        }


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


def z_image(layers: int = 30, refiner_layers: int = 2) -> dict[str, nn.Module]:
    """Z-Image of any depth with the whole Qwen3-4B, and FLUX.1's VAE."""
    with torch.device("meta"):
        return {
            "transformer": ZImageTransformer2DModel(
                in_channels=16,
                dim=3840,
                n_layers=layers,
                n_refiner_layers=refiner_layers,
                n_heads=30,
                n_kv_heads=30,
                cap_feat_dim=2560,
                axes_dims=[32, 48, 48],
                axes_lens=[1536, 512, 512],
            ),
            "text_encoder": Qwen3Model(_qwen3_4b()),
            "vae": _vae(0.3611, 0.1159),
        }


def flux2_klein() -> dict[str, nn.Module]:
    """FLUX.2 klein 4B."""
    with torch.device("meta"):
        return {
            "transformer": Flux2Transformer2DModel(
                in_channels=128,
                num_layers=5,
                num_single_layers=20,
                attention_head_dim=128,
                num_attention_heads=24,
                joint_attention_dim=7680,
                guidance_embeds=False,
            ),
            "text_encoder": Qwen3ForCausalLM(_qwen3_4b()),
            "vae": AutoencoderKLFlux2(),
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


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A small vocabulary, prompts of the real length."""
    tokenizer = make_clip_tokenizer(pad_token)
    tokenizer.model_max_length = CLIP_LENGTH
    return tokenizer


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


def _qwen3_4b() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )


def _vae(scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _flux_dev_networks() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {"transformer": flux_dev(), "vae": _vae(0.3611, 0.1159)}


def _sd3_clip_parts() -> dict[str, Any]:
    return {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer("!"),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _sd3_parts() -> dict[str, Any]:
    return _sd3_clip_parts() | {"text_encoder_3": None, "tokenizer_3": None}


def _z_image_parts() -> dict[str, Any]:
    return {
        "tokenizer": qwen_like(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
    }


def _flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


CONFIGURATIONS = {
    "sd3-medium": Configuration("StableDiffusion3Pipeline", sd3_medium, _sd3_parts),
    "sd3-medium with T5": Configuration(
        "StableDiffusion3Pipeline",
        lambda: sd3_medium() | {"text_encoder_3": t5_xxl()},
        lambda: _sd3_clip_parts() | {"tokenizer_3": t5_tokenizer()},
    ),
    "FLUX.1-dev": Configuration(
        "FluxPipeline", _flux_dev_networks, lambda: {"scheduler": _flux_scheduler()}
    ),
    "Z-Image": Configuration("ZImagePipeline", z_image, _z_image_parts),
    "Z-Image at a quarter of its depth": Configuration(
        "ZImagePipeline",
        lambda: z_image(8, 1),
        _z_image_parts,
        settings={"max_sequence_length": 64},  # the language model runs all of them, used or not
    ),
    "FLUX.2-klein-4B": Configuration(
        "Flux2KleinPipeline",
        flux2_klein,
        lambda: {"tokenizer": qwen_like(), "scheduler": _flux_scheduler()},
        {"is_distilled": True},
    ),
}
