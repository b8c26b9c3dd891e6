"""What several families' pipelines are made of: CLIP and T5 encoders, a VAE."""

from __future__ import annotations

import string

import torch
from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

MAX_LENGTH = 16
LOUD = 6.0
MERGES = "t h|th e</w>|a n|an d</w>|e r|i n|in g</w>|b o|bo o|boo t</w>|s h|d a|da r|dar k</w>|c o"
WORDS = "the a and an dark boot shoe dress shirt rest of in with photograph red on"


def make_clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Every byte, a few merges; pads with `pad_token`."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [tuple(merge.split()) for merge in MERGES.split("|")]
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(merge) for merge in merges]
    vocab = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=MAX_LENGTH, pad_token=pad_token
    )


def make_clip(
    tokenizer: CLIPTokenizer, width: int, act: str, projected: bool = True
) -> CLIPTextModel | CLIPTextModelWithProjection:
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
    encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    norm = (encoder.text_model if projected else encoder).final_layer_norm
    with torch.no_grad():
        norm.weight *= LOUD
    return encoder


def make_t5_tokenizer() -> T5Tokenizer:
    """T5's special tokens, letters and some words, the longer the likelier."""
    letters = [*string.ascii_letters, *string.digits, *",.!?'-"]
    pieces = ["\u2581", *letters, *(f"\u2581{word}" for word in WORDS.split())]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(piece, -10.0 + 0.5 * len(piece)) for piece in pieces]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=MAX_LENGTH)


def make_t5(tokenizer: T5Tokenizer, width: int) -> T5EncoderModel:
    """Two layers of `width` channels."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    encoder = T5EncoderModel(config).eval()
    with torch.no_grad():  # prompts of a random encoder differ too little to tell modes apart
        encoder.encoder.final_layer_norm.weight *= LOUD
    return encoder


def make_vae(scaling_factor: float, shift_factor: float | None) -> AutoencoderKL:
    """Four channels, two pixels a cell."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
