"""Writes SD3-medium's full configuration with random float16 weights: `python -m
benchmarks.scale.sd3_source FOLDER [t5]`.

With `t5` it has T5-XXL too, whose matrices are zeros but for one number and take no disk.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.scale.configurations import clip_tokenizer, sd3_medium, t5_tokenizer, t5_xxl
from benchmarks.scale.folders import write_pipeline

T5 = "text_encoder_3"


def main(folder: str, *with_t5: str) -> None:
    networks = sd3_medium()
    if with_t5:
        networks[T5] = t5_xxl()
    others: dict[str, Any] = {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer("!"),
        "tokenizer_3": t5_tokenizer() if with_t5 else None,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    if not with_t5:
        others[T5] = None
    write_pipeline(
        Path(folder), "StableDiffusion3Pipeline", networks, others, torch.float16, holes=[T5]
    )
    for name, network in networks.items():
        print(f"{name} {sum(parameter.numel() for parameter in network.parameters()):,}")


if __name__ == "__main__":
    main(*sys.argv[1:])
