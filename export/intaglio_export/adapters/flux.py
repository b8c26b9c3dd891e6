"""FLUX.1 dev, schnell, de-distilled and Kontext: diffusers' `FluxTransformer2DModel` (BFL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from intaglio_export.adapters.base import LARGEST_SIDE, Adapter, Inputs, Modulation
from intaglio_export.adapters.layouts import EncoderLayout, LatentLayout, PromptLayout, TextSegment
from intaglio_export.adapters.references import References, ReferencesAdapter
from intaglio_export.graph_specs import TensorSpec


class FluxAdapter(Adapter):
    """`FluxPipeline`: T5 gives the sequence, CLIP-L the pooled vector, and latents are packed."""

    family = "flux"
    pipeline_classes = ("FluxPipeline",)
    prediction_type = "velocity"
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    sigmas = "linspace"
    cfg_argument = "true_cfg_scale"

    def blocks(self) -> Sequence[nn.Module]:
        """Return the double-stream blocks followed by the single-stream blocks."""
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def gating(self, block: nn.Module) -> nn.Module:
        double = block in list(self.transformer.transformer_blocks)
        return block.norm1 if double else block.norm  # type: ignore[return-value]

    def modulations(self) -> tuple[Modulation, ...]:
        double = self.transformer.transformer_blocks
        blocks = [[block.norm1, block.norm1_context] for block in double]
        blocks += [[block.norm] for block in self.transformer.single_transformer_blocks]
        norms = [Modulation(norm.linear, k) for k, norms in enumerate(blocks) for norm in norms]
        return (*norms, Modulation(self.transformer.norm_out.linear, len(blocks)))

    def projection(self) -> tuple[nn.Module, ...]:
        return (self.transformer.context_embedder,)

    def inputs(self) -> tuple[TensorSpec, ...]:
        config = self.transformer.config
        guidance = (TensorSpec("guidance", ("base_rows",)),) if config.guidance_embeds else ()
        return (
            TensorSpec("latent", ("base_rows", "tokens", config.in_channels)),
            TensorSpec("text", ("base_rows", "text_length", config.joint_attention_dim)),
            TensorSpec("pooled", ("base_rows", config.pooled_projection_dim)),
            TensorSpec("timestep", ("base_rows",)),
            TensorSpec("position", ("tokens", 3)),
            *guidance,
        )

    def predict(self, inputs: Inputs) -> torch.Tensor:
        text = inputs["text"]
        prediction: torch.Tensor = self.transformer(
            hidden_states=inputs["latent"],
            encoder_hidden_states=text,
            pooled_projections=inputs["pooled"],
            timestep=inputs["timestep"] / 1000,
            img_ids=inputs["position"],
            txt_ids=text.new_zeros(text.shape[1], 3),
            guidance=inputs.get("guidance"),
            return_dict=False,
        )[0]
        return prediction

    @property
    def patch_size(self) -> int:
        # The pipeline packs 2x2 cells into a token. The configuration's patch_size is 1, because it
        # counts packed cells.
        return 2

    def latent(self) -> LatentLayout:
        vae = self.pipeline.vae.config
        return LatentLayout(
            channels=self.transformer.config.in_channels // self.patch_size**2,
            vae_scale_factor=self.pipeline.vae_scale_factor,
            scaling_factor=vae.scaling_factor,
            shift_factor=vae.shift_factor,
            max_height=LARGEST_SIDE,
            max_width=LARGEST_SIDE,
            packed=True,
        )

    def prompt(self, max_sequence_length: int) -> PromptLayout:
        length = int(self.pipeline.tokenizer_max_length)
        return PromptLayout(
            max_sequence_length=max_sequence_length,
            encoders={
                "text_encoder": EncoderLayout("tokenizer", length, ("pooled",)),
                "text_encoder_2": EncoderLayout("tokenizer_2", max_sequence_length, ("hidden",)),
            },
            text=(TextSegment(("text_encoder_2",), max_sequence_length),),
            text_width=self.transformer.config.joint_attention_dim,
            pooled=("text_encoder",),
        )

    @property
    def default_side(self) -> int:
        return int(self.pipeline.default_sample_size * self.pipeline.vae_scale_factor)

    @property
    def distilled_guidance(self) -> float | None:
        if not self.transformer.config.guidance_embeds:
            return None
        return float(self.call_default("guidance_scale"))

    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        text, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            device=torch.device("cpu"),
            max_sequence_length=max_sequence_length,
        )
        return {"text": text, "pooled": pooled}


class FluxKontextAdapter(ReferencesAdapter, FluxAdapter):
    """`FluxKontextPipeline`: FLUX.1 with a reference image."""

    pipeline_classes = ("FluxKontextPipeline",)

    def references(self) -> References:
        # The import makes transformers warn about torchvision, also where no model is of this kind.
        from diffusers.pipelines.flux import pipeline_flux_kontext

        sizes = tuple(pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS)
        return References(most=1, time=1, sizes=sizes)
