"""Stable Diffusion 3 and 3.5 (MMDiT): diffusers' `SD3Transformer2DModel`, arXiv 2403.03206."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import nn

from intaglio_export.adapters.base import (
    Adapter,
    Inputs,
    LatentLayout,
    PipelineDefaults,
    PromptLayout,
    TailCall,
    TextSegment,
)
from intaglio_export.graphs import Axis


class SD3Adapter(Adapter):
    """`StableDiffusion3Pipeline` with its two CLIP encoders; T5's rows are zeros."""

    family = "sd3"
    pipeline_classes = ("StableDiffusion3Pipeline",)
    prediction_type = "velocity"

    @classmethod
    def load(cls, folder: str) -> SD3Adapter:
        # T5 is left out as diffusers itself allows: zeros stand for its rows. See `left_out`.
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            folder,
            text_encoder_3=None,
            tokenizer_3=None,
            dtype=torch.float32,
            local_files_only=True,
        )
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        return cls(pipeline, has_t5=_has_t5(folder))

    def __init__(self, pipeline: Any, has_t5: bool = False) -> None:
        super().__init__(pipeline)
        self._has_t5 = has_t5

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.pipeline.transformer.transformer_blocks)

    def split(self, output: Any) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        text, hidden = output  # joint blocks return (encoder, hidden); the last one's text is None
        return hidden, (text,)

    def join(self, hidden: torch.Tensor, others: tuple[torch.Tensor | None, ...]) -> Any:
        return others[0], hidden

    @property
    def row_arguments(self) -> tuple[str, ...]:
        return ("temb",)

    @property
    def tail(self) -> tuple[TailCall, ...]:
        return (TailCall(self.pipeline.transformer.norm_out, row_arguments=(1,)),)

    def input_axes(self) -> dict[str, tuple[Axis, ...]]:
        config = self.pipeline.transformer.config
        return {
            "latent": ("base_rows", config.in_channels, "latent_height", "latent_width"),
            "text": ("base_rows", "text_length", config.joint_attention_dim),
            "pooled": ("base_rows", config.pooled_projection_dim),
            "timestep": ("base_rows",),
        }

    def output_axes(self) -> tuple[Axis, ...]:
        out_channels = self.pipeline.transformer.out_channels
        return ("rows", out_channels, "latent_height", "latent_width")

    def predict(self, inputs: Inputs) -> torch.Tensor:
        prediction: torch.Tensor = self.pipeline.transformer(
            hidden_states=inputs["latent"],
            encoder_hidden_states=inputs["text"],
            pooled_projections=inputs["pooled"],
            timestep=inputs["timestep"],
            return_dict=False,
        )[0]
        return prediction

    @property
    def patch_size(self) -> int:
        return int(self.pipeline.transformer.config.patch_size)

    @property
    def channels(self) -> int:
        return int(self.pipeline.transformer.inner_dim)

    def latent(self) -> LatentLayout:
        config = self.pipeline.transformer.config
        scale = self.pipeline.vae_scale_factor
        side = config.pos_embed_max_size * config.patch_size * scale
        vae = self.pipeline.vae.config
        return LatentLayout(
            channels=config.in_channels,
            vae_scale_factor=scale,
            scaling_factor=vae.scaling_factor,
            shift_factor=vae.shift_factor or 0.0,
            max_height=side,
            max_width=side,
        )

    def prompt(self, max_sequence_length: int) -> PromptLayout:
        encoders = ("text_encoder", "text_encoder_2")
        # The pipeline pads and cuts both to the first tokenizer's length.
        length = int(self.pipeline.tokenizer_max_length)
        return PromptLayout(
            encoders={name: name.replace("text_encoder", "tokenizer") for name in encoders},
            max_length=length,
            max_sequence_length=max_sequence_length,
            text=(TextSegment(encoders, length), TextSegment((), max_sequence_length)),
            text_width=self.pipeline.transformer.config.joint_attention_dim,
            pooled=encoders,
        )

    def defaults(self) -> PipelineDefaults:
        call = inspect.signature(StableDiffusion3Pipeline.__call__).parameters
        side = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return PipelineDefaults(
            steps=call["num_inference_steps"].default,
            cfg_scale=call["guidance_scale"].default,
            height=side,
            width=side,
            max_sequence_length=call["max_sequence_length"].default,
        )

    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            device=torch.device("cpu"),
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return {"text": text, "pooled": pooled}

    def scheduler(self, steps: int, latent: torch.Tensor) -> Any:
        scheduler = deepcopy(self.pipeline.scheduler)
        extra = {}
        config = scheduler.config
        if config.get("use_dynamic_shifting"):
            tokens = (latent.shape[-2] // self.patch_size) * (latent.shape[-1] // self.patch_size)
            extra["mu"] = calculate_shift(
                tokens,
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.16),
            )
        scheduler.set_timesteps(steps, **extra)
        return scheduler

    def left_out(self) -> list[str]:
        if not self._has_t5:
            return []
        return [
            "The third text encoder (T5) is left out: its part of the prompt is zeros, as diffusers"
            " does without text_encoder_3."
        ]


def _has_t5(folder: str) -> bool:
    index = json.loads((Path(folder) / "model_index.json").read_text("utf-8"))
    return bool((index.get("text_encoder_3") or [None])[0])
