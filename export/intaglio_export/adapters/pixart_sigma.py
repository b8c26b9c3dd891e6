"""PixArt-Sigma: diffusers' `PixArtTransformer2DModel`, arXiv 2403.04692."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from intaglio_export.adapters.base import LARGEST_SIDE, Adapter, Inputs, Modulation
from intaglio_export.adapters.layouts import EncoderLayout, LatentLayout, PromptLayout, TextSegment
from intaglio_export.errors import ExportError
from intaglio_export.graph_specs import TensorSpec
from intaglio_export.support.patching import replaced


class PixArtSigmaAdapter(Adapter):
    """`PixArtSigmaPipeline`, with AdaLN-single and masked cross-attention to T5."""

    family = "pixart-sigma"
    pipeline_classes = ("PixArtSigmaPipeline",)
    prediction_type = "epsilon"
    text_encoders = ("text_encoder",)

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(pipeline, dtype)
        if self.transformer.use_additional_conditions:
            raise ExportError(
                "The transformer takes resolution and aspect ratio (use_additional_conditions), as"
                " PixArt-alpha does; this version exports PixArt-Sigma only."
            )

    def attention(self, block: nn.Module) -> nn.Module:
        return block.attn1  # type: ignore[return-value]

    def gating(self, block: nn.Module) -> nn.Module:
        """Return the block, which adds its own table to the modulations that all blocks get."""
        return block

    def gate(self, block: nn.Module, kwargs: Mapping[str, Any], output: Any) -> torch.Tensor:
        given: torch.Tensor = kwargs["timestep"]
        table: torch.Tensor = block.scale_shift_table  # type: ignore[assignment]
        return table[2] + given.reshape(given.shape[0], 6, -1)[:, 2]

    @property
    def row_arguments(self) -> tuple[str, ...]:
        return ("encoder_hidden_states", "encoder_attention_mask", "timestep")

    def modulations(self) -> tuple[Modulation, ...]:
        """Return one modulation for all blocks, and the embedded timestep for what follows them."""
        single = self.transformer.adaln_single
        embedded = single.emb.timestep_embedder.linear_2
        return (Modulation(single.linear, 0), Modulation(embedded, len(self.blocks())))

    def projection(self) -> tuple[nn.Module, ...]:
        return (self.transformer.caption_projection,)

    def inputs(self) -> tuple[TensorSpec, ...]:
        config = self.transformer.config
        cells = ("latent_height", "latent_width")
        return (
            TensorSpec("latent", ("base_rows", config.in_channels, *cells)),
            TensorSpec("text", ("base_rows", "text_length", config.caption_channels)),
            TensorSpec("text_mask", ("base_rows", "text_length")),
            TensorSpec("timestep", ("base_rows",)),
        )

    def predict(self, inputs: Inputs) -> torch.Tensor:
        with replaced(self._for_every_size()):
            prediction: torch.Tensor = self.transformer(
                inputs["latent"],
                encoder_hidden_states=inputs["text"],
                encoder_attention_mask=inputs["text_mask"],
                timestep=inputs["timestep"],
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
            )[0]
        # The second half is the learned sigma, which our samplers do not use.
        return prediction[:, : self.transformer.config.in_channels]

    def _for_every_size(self) -> Iterator[tuple[object, str, Any]]:
        """Yield replacements with the same values that can be traced for any number of rows."""
        # The model has a table for the pipeline's own size, which would be fixed in the graph. With
        # an impossible own size, the table is computed for every size.
        yield self.transformer.pos_embed, "height", -1
        for block in self.transformer.transformer_blocks:
            yield block.attn2, "prepare_attention_mask", _mask_for(block.attn2.heads)

    def latent(self) -> LatentLayout:
        return LatentLayout(
            channels=self.transformer.config.in_channels,
            vae_scale_factor=self.pipeline.vae_scale_factor,
            scaling_factor=self.pipeline.vae.config.scaling_factor,
            shift_factor=0.0,
            max_height=LARGEST_SIDE,
            max_width=LARGEST_SIDE,
        )

    def prompt(self, max_sequence_length: int) -> PromptLayout:
        encoder = EncoderLayout(
            "tokenizer", max_sequence_length, ("hidden",), masked=True, lowercase=True
        )
        return PromptLayout(
            max_sequence_length=max_sequence_length,
            encoders={"text_encoder": encoder},
            text=(TextSegment(("text_encoder",), max_sequence_length),),
            text_width=self.transformer.config.caption_channels,
            text_mask="text_encoder",
        )

    @property
    def default_side(self) -> int:
        return int(self.transformer.config.sample_size * self.pipeline.vae_scale_factor)

    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        text, mask, _, _ = self.pipeline.encode_prompt(
            prompt=prompts,
            do_classifier_free_guidance=False,
            device=torch.device("cpu"),
            max_sequence_length=max_sequence_length,
        )
        return {"text": text, "text_mask": mask.to(text.dtype)}


def _mask_for(heads: int) -> Callable[..., torch.Tensor]:
    """Replace diffusers' method, whose number of mask rows [B, 1, S] cannot be traced."""

    def prepare(mask: torch.Tensor, *sizes: int) -> torch.Tensor:
        return mask.unsqueeze(1).expand(-1, heads, -1, -1)

    return prepare
