"""A small random Stable Diffusion 3 pipeline of the real diffusers classes."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

PLANTED = 7  # the channel that make_pipeline makes massive
BLOCKS = 4
MAX_LENGTH = 16
MERGES = "t h|th e</w>|a n|an d</w>|e r|i n|in g</w>|b o|bo o|boo t</w>|s h|d a|da r|dar k</w>|c o"


def make_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Every byte, a few merges; pads with `pad_token`."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [tuple(merge.split()) for merge in MERGES.split("|")]
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(merge) for merge in merges]
    vocab = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=MAX_LENGTH, pad_token=pad_token
    )


def make_text_encoder(
    tokenizer: CLIPTokenizer, width: int, act: str
) -> CLIPTextModelWithProjection:
    """Three layers, `width` channels."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config).eval()


def make_transformer(planted: bool = True) -> SD3Transformer2DModel:
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
    ).eval()
    if planted:
        with torch.no_grad():
            transformer.pos_embed.proj.bias[PLANTED] += 40.0
    return transformer


def make_pipeline(planted: bool = True, seed: int = 0) -> StableDiffusion3Pipeline:
    """The whole pipeline, float32, without T5."""
    torch.manual_seed(seed)
    first, second = make_tokenizer("<|endoftext|>"), make_tokenizer("!")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.7,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=make_transformer(planted),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=make_text_encoder(first, 16, "quick_gelu"),
        tokenizer=first,
        text_encoder_2=make_text_encoder(second, 24, "gelu"),
        tokenizer_2=second,
        text_encoder_3=None,
        tokenizer_3=None,
    )
