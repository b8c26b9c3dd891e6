"""Stable Diffusion 3 and 3.5 (MMDiT): diffusers' `SD3Transformer2DModel`, arXiv 2403.03206."""

from __future__ import annotations

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter, Inputs, Modulation
from intaglio_export.adapters.layouts import EncoderLayout, LatentLayout, PromptLayout, TextSegment
from intaglio_export.errors import ExportError
from intaglio_export.graph_specs import TensorSpec

CLIP = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"


class SD3Adapter(Adapter):
    """`StableDiffusion3Pipeline`. Without T5, zeros replace its part of the prompt."""

    family = "sd3"
    pipeline_classes = ("StableDiffusion3Pipeline",)
    prediction_type = "velocity"
    text_encoders = (*CLIP, T5)
    optional_encoders = (T5,)
    max_shift = 1.16

    def modulations(self) -> tuple[Modulation, ...]:
        norms = [
            Modulation(norm.linear, k)
            for k, block in enumerate(self.transformer.transformer_blocks)
            for norm in (block.norm1, block.norm1_context)
        ]
        return (*norms, Modulation(self.transformer.norm_out.linear, len(self.blocks())))

    def projection(self) -> tuple[nn.Module, ...]:
        return (self.transformer.context_embedder,)

    def inputs(self) -> tuple[TensorSpec, ...]:
        config = self.transformer.config
        cells = ("latent_height", "latent_width")
        return (
            TensorSpec("latent", ("base_rows", config.in_channels, *cells)),
            TensorSpec("text", ("base_rows", "text_length", config.joint_attention_dim)),
            TensorSpec("pooled", ("base_rows", config.pooled_projection_dim)),
            TensorSpec("timestep", ("base_rows",)),
        )

    def predict(self, inputs: Inputs) -> torch.Tensor:
        prediction: torch.Tensor = self.transformer(
            hidden_states=inputs["latent"],
            encoder_hidden_states=inputs["text"],
            pooled_projections=inputs["pooled"],
            timestep=inputs["timestep"],
            return_dict=False,
        )[0]
        return prediction

    def latent(self) -> LatentLayout:
        config = self.transformer.config
        scale = self.pipeline.vae_scale_factor
        if config.pos_embed_max_size is None:
            raise ExportError(
                "The config.json of the transformer has no pos_embed_max_size, so that positions"
                " depend on the size of the image, which this version cannot export; give a model"
                " that has it."
            )
        side = config.pos_embed_max_size * config.patch_size * scale
        vae = self.pipeline.vae.config
        return LatentLayout(
            channels=config.in_channels,
            vae_scale_factor=scale,
            scaling_factor=vae.scaling_factor,
            shift_factor=vae.shift_factor,
            max_height=side,
            max_width=side,
        )

    def prompt(self, max_sequence_length: int) -> PromptLayout:
        # The pipeline pads and truncates both CLIP prompts to the first tokenizer's length.
        length = int(self.pipeline.tokenizer_max_length)
        encoders = {
            name: EncoderLayout(_tokenizer(name), length, ("hidden", "pooled")) for name in CLIP
        }
        t5: tuple[str, ...] = ()
        if self.pipeline.text_encoder_3 is not None:
            encoders[T5] = EncoderLayout(_tokenizer(T5), max_sequence_length, ("hidden",))
            t5 = (T5,)
        return PromptLayout(
            max_sequence_length=max_sequence_length,
            encoders=encoders,
            text=(TextSegment(CLIP, length), TextSegment(t5, max_sequence_length)),
            text_width=self.transformer.config.joint_attention_dim,
            pooled=CLIP,
        )

    @property
    def default_side(self) -> int:
        return int(self.pipeline.default_sample_size * self.pipeline.vae_scale_factor)

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

    def left_out(self) -> list[str]:
        if self.pipeline.text_encoder_3 is not None:
            return []
        return ["The third text encoder (T5) is left out; zeros replace its part of the prompt."]


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")
