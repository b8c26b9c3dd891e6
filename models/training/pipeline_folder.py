"""Assemble the trained parts as a diffusers pipeline, save it in float16, and load it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

from . import flow, text


def assemble(work: Path, transformer: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """Return a float32 pipeline of `transformer` and the frozen stages in `work`, without T5."""
    tokenizers, encoders = text.load_encoders(work / "encoders")
    # This is a fresh object, because a loaded one keeps the name of its folder in its config.
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(work / "vae"))
    vae.load_state_dict(AutoencoderKL.from_pretrained(work / "vae").state_dict())
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow.build_scheduler(),
        vae=vae.eval(),
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )


def load(path: Path) -> StableDiffusion3Pipeline:
    """Load the pipeline of a folder without T5, in float32.

    diffusers needs the parts that are null in model_index.json named again.
    """
    return StableDiffusion3Pipeline.from_pretrained(
        path, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )


def write(out: Path, work: Path, transformer: SD3Transformer2DModel) -> int:
    """Save the pipeline to `out` in float16; return the size of the files there in bytes."""
    pipeline = assemble(work, transformer).to(dtype=torch.float16)
    out.mkdir(parents=True, exist_ok=True)
    pipeline.save_pretrained(out, safe_serialization=True)
    return sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
