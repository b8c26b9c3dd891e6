"""Writes SD3-medium's full configuration with random float16 weights: `python -m
benchmarks.scale.sd3_source FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.scale.configurations import clip_tokenizer, sd3_medium
from benchmarks.scale.folders import write_pipeline


def main(folder: str) -> None:
    others = {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer("!"),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder_3": None,
        "tokenizer_3": None,
    }
    networks = sd3_medium()
    write_pipeline(Path(folder), "StableDiffusion3Pipeline", networks, others, torch.float16)
    for name, network in networks.items():
        print(f"{name} {sum(parameter.numel() for parameter in network.parameters()):,}")


if __name__ == "__main__":
    main(*sys.argv[1:])
