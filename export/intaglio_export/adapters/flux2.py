"""FLUX.2 klein and dev: diffusers' `Flux2Transformer2DModel` (Black Forest Labs)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import nn
from torch.nn import functional

from intaglio_export.adapters.base import LARGEST_SIDE, Inputs, Modulation
from intaglio_export.adapters.layouts import (
    EncoderLayout,
    LatentLayout,
    PipelineDefaults,
    PromptLayout,
    TextSegment,
)
from intaglio_export.adapters.references import References, ReferencesAdapter
from intaglio_export.adapters.text_first import TextFirstAdapter
from intaglio_export.bundle.chat_template import ChatTemplate
from intaglio_export.graph_specs import TensorSpec


class _Flux2Adapter(TextFirstAdapter):
    """What both pipelines have in common.

    They sample patches of 2x2 cells of the VAE, whose channels they normalize one by one. Here such
    a patch is the latent cell, and the VAE's graph undoes the normalization and splits it.
    """

    family = "flux2"
    text_encoders = ("text_encoder",)
    prediction_type = "velocity"
    sigmas = "linspace"
    mu = "empirical"
    single_block = Flux2SingleTransformerBlock

    def blocks(self) -> Sequence[nn.Module]:
        """Return the double-stream blocks followed by the single-stream blocks."""
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def gating(self, block: nn.Module) -> nn.Module:
        return block

    def gate(self, block: nn.Module, kwargs: Mapping[str, Any], output: Any) -> torch.Tensor:
        """Return the gate out of the modulation that the transformer gives to all blocks."""
        if isinstance(block, Flux2SingleTransformerBlock):
            return kwargs["temb_mod"].chunk(3, dim=-1)[2]  # type: ignore[no-any-return]
        return kwargs["temb_mod_img"].chunk(6, dim=-1)[2]  # type: ignore[no-any-return]

    @property
    def row_arguments(self) -> tuple[str, ...]:
        return ("temb_mod_img", "temb_mod_txt", "temb_mod")

    def modulations(self) -> tuple[Modulation, ...]:
        # All blocks of a kind share one, so the blocks gather its rows, as `row_arguments`.
        model = self.transformer
        shared = [model.double_stream_modulation_img, model.double_stream_modulation_txt]
        shared.append(model.single_stream_modulation)
        last = Modulation(model.norm_out.linear, len(self.blocks()))
        return (*(Modulation(modulation.linear, 0) for modulation in shared), last)

    def projection(self) -> tuple[nn.Module, ...]:
        return (self.transformer.context_embedder,)

    def inputs(self) -> tuple[TensorSpec, ...]:
        config = self.transformer.config
        guided = self.distilled_guidance is not None
        guidance = (TensorSpec("guidance", ("base_rows",)),) if guided else ()
        return (
            TensorSpec("latent", ("base_rows", "tokens", config.in_channels)),
            TensorSpec("text", ("base_rows", "text_length", config.joint_attention_dim)),
            TensorSpec("timestep", ("base_rows",)),
            TensorSpec("position", ("tokens", 3)),
            *guidance,
        )

    def predict(self, inputs: Inputs) -> torch.Tensor:
        text = inputs["text"]
        self._text_length = text.shape[1]
        prediction: torch.Tensor = self.transformer(
            hidden_states=inputs["latent"],
            encoder_hidden_states=text,
            timestep=inputs["timestep"] / 1000,
            # The fourth axis counts the text's tokens, which stand at (0, 0, 0) of the others.
            img_ids=functional.pad(inputs["position"], (0, 1)),
            txt_ids=functional.pad(torch.arange(text.shape[1]).unsqueeze(1), (3, 0)),
            guidance=inputs.get("guidance"),
            return_dict=False,
        )[0]
        return prediction

    def latent(self) -> LatentLayout:
        return LatentLayout(
            channels=self.transformer.config.in_channels,
            vae_scale_factor=2 * self.pipeline.vae_scale_factor,
            scaling_factor=1.0,  # the graphs of the VAE scale each channel
            shift_factor=0.0,
            max_height=LARGEST_SIDE,
            max_width=LARGEST_SIDE,
            packed=True,
        )

    @property
    def vae_channels(self) -> int:
        return int(self.transformer.config.in_channels) // 4

    @property
    def default_side(self) -> int:
        return int(self.pipeline.default_sample_size * self.pipeline.vae_scale_factor)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        return super().decode(self.pipeline._unpatchify_latents(latents * std + mean))

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        latents: torch.Tensor = self.pipeline._patchify_latents(super().encode(image))
        return (latents - mean) / std

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and standard deviation of each latent channel, [C, 1, 1]."""
        norm = self.pipeline.vae.bn
        std = torch.sqrt(norm.running_var + self.pipeline.vae.config.batch_norm_eps)
        return norm.running_mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def prompt(self, max_sequence_length: int) -> PromptLayout:
        encoder = EncoderLayout(
            "tokenizer",
            max_sequence_length,
            ("hidden",),
            masked=True,
            taps=tuple(self.call_default("text_encoder_out_layers")),
            template=self.template,
            pads_left=getattr(self.pipeline.tokenizer, "padding_side", "right") == "left",
        )
        return PromptLayout(
            max_sequence_length=max_sequence_length,
            encoders={"text_encoder": encoder},
            text=(TextSegment(("text_encoder",), max_sequence_length),),
            text_width=self.transformer.config.joint_attention_dim,
        )

    @property
    @abstractmethod
    def template(self) -> ChatTemplate:
        """How the pipeline puts a prompt into a chat."""

    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        text, _ = self.pipeline.encode_prompt(
            prompts, device=torch.device("cpu"), max_sequence_length=max_sequence_length
        )
        return {"text": text}

    def _shift(self, config: Mapping[str, Any], tokens: int, steps: int) -> float:
        return float(compute_empirical_mu(tokens, steps))


class _WithReferences(ReferencesAdapter, _Flux2Adapter):
    """The same with references, whose limits of number are Black Forest Labs'."""

    most_references: ClassVar[int]

    def references(self) -> References:
        # Where diffusers' pipeline draws a mask anew, it takes the picture as a reference too.
        return References(
            self.most_references, 10, max_area=1024**2, min_side=64, max_aspect=8, only=True
        )


class Flux2KleinAdapter(_WithReferences):
    """`Flux2KleinPipeline`: hidden states of three layers of Qwen3 are the prompt's channels."""

    pipeline_classes = ("Flux2KleinPipeline",)
    most_references = 4

    @property
    def template(self) -> ChatTemplate:
        return ChatTemplate(options={"add_generation_prompt": True, "enable_thinking": False})

    @cached_property
    def distilled(self) -> bool:
        return bool(self.pipeline.config.is_distilled)

    def defaults(self) -> PipelineDefaults:
        """Return the defaults of the pipeline, which are those of the models for CFG."""
        defaults = super().defaults()
        return replace(defaults, steps=4, cfg_scale=1.0) if self.distilled else defaults


class Flux2DevAdapter(_WithReferences):
    """`Flux2Pipeline`: three layers of Mistral 3, whose prompts are padded on the left.

    The transformer also reads the hidden states of that padding.
    """

    pipeline_classes = ("Flux2Pipeline",)
    most_references = 6

    @property
    def template(self) -> ChatTemplate:
        return ChatTemplate(
            system=self.pipeline.system_message,
            in_parts=True,
            removed="[IMG]",
            options={"add_generation_prompt": False},
        )

    @property
    def distilled_guidance(self) -> float | None:
        if not self.transformer.config.guidance_embeds:
            return None
        return float(self.call_default("guidance_scale"))

    def defaults(self) -> PipelineDefaults:
        """Return the defaults of the pipeline, which has no CFG."""
        return replace(super().defaults(), cfg_scale=1.0)
