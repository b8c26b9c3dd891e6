"""Chroma: diffusers' `ChromaTransformer2DModel` (lodestones), made from FLUX.1-schnell."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock

from intaglio_export.adapters.base import Inputs, Modulation
from intaglio_export.adapters.flux import FluxAdapter
from intaglio_export.adapters.layouts import EncoderLayout, PromptLayout, TextSegment
from intaglio_export.adapters.text_first import TextFirstAdapter
from intaglio_export.graph_specs import TensorSpec
from intaglio_export.support.patching import replaced


class ChromaAdapter(TextFirstAdapter, FluxAdapter):
    """`ChromaPipeline`: FLUX.1's blocks, T5 alone with a mask, and CFG instead of distillation.

    One network, the approximator, makes the modulations of all blocks from the timestep.
    """

    family = "chroma"
    pipeline_classes = ("ChromaPipeline",)
    text_encoders = ("text_encoder",)
    cfg_argument = "guidance_scale"
    single_block = ChromaSingleTransformerBlock

    @property
    def row_arguments(self) -> tuple[str, ...]:
        return ("attention_mask",)

    def modulations(self) -> tuple[Modulation, ...]:
        """Return what the approximator gives to each norm: shifts, scales and gates."""
        double = self.transformer.transformer_blocks
        blocks = [[(block.norm1, 6), (block.norm1_context, 6)] for block in double]
        blocks += [[(block.norm, 3)] for block in self.transformer.single_transformer_blocks]
        blocks += [[(self.transformer.norm_out, 2)]]
        return tuple(
            Modulation(norm, k, "emb", (count, self.channels))
            for k, norms in enumerate(blocks)
            for norm, count in norms
        )

    def inputs(self) -> tuple[TensorSpec, ...]:
        config = self.transformer.config
        return (
            TensorSpec("latent", ("base_rows", "tokens", config.in_channels)),
            TensorSpec("text", ("base_rows", "text_length", config.joint_attention_dim)),
            TensorSpec("text_mask", ("base_rows", "text_length")),
            TensorSpec("timestep", ("base_rows",)),
            TensorSpec("position", ("tokens", 3)),
        )

    def predict(self, inputs: Inputs) -> torch.Tensor:
        text, latent, mask = inputs["text"], inputs["latent"], inputs["text_mask"]
        self._text_length = text.shape[1]
        embed = self.transformer.time_text_embed
        with replaced([(embed, "forward", approximator_inputs(embed))]):
            prediction: torch.Tensor = self.transformer(
                hidden_states=latent,
                encoder_hidden_states=text,
                timestep=inputs["timestep"] / 1000,
                img_ids=inputs["position"],
                txt_ids=text.new_zeros(text.shape[1], 3),
                attention_mask=torch.cat([mask, mask.new_ones(latent.shape[:2])], dim=1),
                return_dict=False,
            )[0]
        return prediction

    def prompt(self, max_sequence_length: int) -> PromptLayout:
        encoder = EncoderLayout("tokenizer", max_sequence_length, ("hidden",), masked=True)
        return PromptLayout(
            max_sequence_length=max_sequence_length,
            encoders={"text_encoder": encoder},
            text=(TextSegment(("text_encoder",), max_sequence_length),),
            text_width=self.transformer.config.joint_attention_dim,
            text_mask="text_encoder",
            mask_padding=1,
        )

    @property
    def distilled_guidance(self) -> float | None:
        return None

    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        text, _, mask, *_ = self.pipeline.encode_prompt(
            prompt=prompts,
            device=torch.device("cpu"),
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return {"text": text, "text_mask": mask}


def approximator_inputs(embed: Any) -> Any:
    """Replace `time_text_embed.forward`, which makes a list whose length a trace would fix.

    The approximator gets one row for each modulation: the timestep, no guidance, and the number of
    the modulation.
    """

    def forward(timestep: torch.Tensor) -> torch.Tensor:
        time = embed.time_proj(timestep)
        guidance = embed.guidance_proj(torch.zeros_like(timestep))
        given = torch.cat([time, guidance], dim=1).unsqueeze(1)
        numbers = embed.mod_proj.to(given.dtype).unsqueeze(0)
        return torch.cat(
            [
                given.expand(-1, numbers.shape[1], -1),
                numbers.expand(given.shape[0], -1, -1),
            ],
            dim=-1,
        )

    return forward
