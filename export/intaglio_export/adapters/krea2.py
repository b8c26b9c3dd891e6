"""Krea 2: diffusers' `Krea2Transformer2DModel` (Krea AI)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from diffusers.models.transformers.transformer_krea2 import Krea2TransformerBlock
from torch import nn

from intaglio_export.adapters.base import (
    EncoderLayout,
    Inputs,
    Modulation,
    PipelineDefaults,
    PromptLayout,
    TextSegment,
)
from intaglio_export.adapters.qwen_vae import QwenVaeAdapter
from intaglio_export.adapters.text_first import TextFirstAdapter
from intaglio_export.bundle.chat_template import ChatTemplate
from intaglio_export.graph_specs import TensorSpec
from intaglio_export.precision import LowPrecisionMatmuls

TURBO_STEPS, TURBO_MU = 8, 1.15  # as the pipeline's documentation and its code have them


class Krea2Adapter(TextFirstAdapter, QwenVaeAdapter):
    """`Krea2Pipeline`: several layers of Qwen3-VL are fused by a small transformer of their own.

    One modulation of six vectors serves all blocks, each of which adds a table to it. The pipeline
    pads a prompt before the end of its template. No position tells tokens of the text apart, so the
    order of prompt, end and padding does not matter; here padding comes last.
    """

    family = "krea2"
    pipeline_classes = ("Krea2Pipeline",)
    prediction_type = "velocity"
    text_encoders = ("text_encoder",)
    sigmas = "linspace"
    single_block = Krea2TransformerBlock
    projects_with_mask = True

    @property
    def patch_size(self) -> int:
        return int(self.pipeline.patch_size)

    @property
    def channels(self) -> int:
        return int(self.transformer.hidden_size)

    def gating(self, block: nn.Module) -> nn.Module:
        return block

    def gate(self, block: nn.Module, kwargs: Mapping[str, Any], output: Any) -> torch.Tensor:
        """Return the gate out of scale, shift and gate of attention, then of the MLP."""
        table: torch.Tensor = block.scale_shift_table[2]  # type: ignore[index]
        given: torch.Tensor = kwargs["temb"].flatten(1).chunk(6, dim=-1)[2]
        return given + table

    @property
    def row_arguments(self) -> tuple[str, ...]:
        return ("temb", "attention_mask")

    def modulations(self) -> tuple[Modulation, ...]:
        # All blocks share the first and gather its rows, as `temb`. The last layer takes the other.
        first, last = self._modulating
        return (Modulation(first, 0), Modulation(last, len(self.blocks())))

    @property
    def _modulating(self) -> tuple[nn.Module, nn.Module]:
        return self.transformer.time_mod_proj, self.transformer.time_embed.linear_2

    def projection(self) -> tuple[nn.Module, ...]:
        return (self.transformer.text_fusion, self.transformer.txt_in)

    def project(self, text: torch.Tensor, text_mask: torch.Tensor | None = None) -> torch.Tensor:
        assert text_mask is not None
        with LowPrecisionMatmuls(self.dtype, lambda: "the prompt's projection"):
            fused = self.transformer.text_fusion(
                self._layers(text), attention_mask=text_mask.bool()[:, None, None, :]
            )
            projected: torch.Tensor = self.transformer.txt_in(fused)
        return projected

    def _layers(self, text: torch.Tensor) -> torch.Tensor:
        """Return `text` [P, T, text_width] as [P, T, layers, D]."""
        layers: int = self.config["num_text_layers"]
        return text.reshape(*text.shape[:-1], layers, text.shape[-1] // layers)

    def inputs(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("latent", ("base_rows", "tokens", self.config["in_channels"])),
            TensorSpec("text", ("base_rows", "text_length", self._text_width)),
            TensorSpec("text_mask", ("base_rows", "text_length")),
            TensorSpec("timestep", ("base_rows",)),
            TensorSpec("position", ("tokens", 3)),
        )

    @property
    def _text_width(self) -> int:
        return int(self.config["num_text_layers"] * self.config["text_hidden_dim"])

    def predict(self, inputs: Inputs) -> torch.Tensor:
        text, position = inputs["text"], inputs["position"]
        self._text_length = text.shape[1]
        origin = position.new_zeros(self._text_length, 3)
        with self._one_token():
            prediction: torch.Tensor = self.transformer(
                hidden_states=inputs["latent"],
                encoder_hidden_states=self._layers(text),
                timestep=inputs["timestep"] / 1000,
                position_ids=torch.cat([origin, position]),
                encoder_attention_mask=inputs["text_mask"].bool(),
                return_dict=False,
            )[0]
        return prediction

    @contextmanager
    def _one_token(self) -> Iterator[None]:
        """Give modulations an axis of tokens, which those that replace them in the loop lack."""

        def after(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            return output.reshape(-1, 1, output.shape[-1])

        handles = [module.register_forward_hook(after) for module in self._modulating]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def prompt(self, max_sequence_length: int) -> PromptLayout:
        dropped = int(self.pipeline.prompt_template_encode_start_idx)
        encoder = EncoderLayout(
            "tokenizer",
            max_sequence_length + dropped,
            ("hidden",),
            masked=True,
            taps=self.pipeline.text_encoder_select_layers,
            template=ChatTemplate(
                text=self.pipeline.prompt_template_encode_prefix + "{}",
                after=self.pipeline.prompt_template_encode_suffix,
            ),
            dropped=dropped,
        )
        return PromptLayout(
            max_sequence_length=max_sequence_length,
            encoders={"text_encoder": encoder},
            text=(TextSegment(("text_encoder",), max_sequence_length),),
            text_width=self._text_width,
            text_mask="text_encoder",
        )

    @property
    def default_side(self) -> int:
        return int(self.call_default("height"))

    @cached_property
    def distilled(self) -> bool:
        return bool(self.pipeline.config.is_distilled)

    @property
    def fixed_mu(self) -> float | None:
        return TURBO_MU if self.distilled else None

    def defaults(self) -> PipelineDefaults:
        defaults = super().defaults()
        if self.distilled:  # the pipeline's defaults are those of the base model
            return replace(defaults, steps=TURBO_STEPS, cfg_scale=1.0)
        # Its guidance_scale s is D_c + s (D_c - D_0), which is a cfg_scale of s + 1.
        return replace(defaults, cfg_scale=defaults.cfg_scale + 1.0)

    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        text, mask = self.pipeline.encode_prompt(
            prompts, device=torch.device("cpu"), max_sequence_length=max_sequence_length
        )
        order = torch.argsort(mask, dim=1, descending=True, stable=True)  # padding comes last
        text = text.flatten(2)
        return {
            "text": text.gather(1, order.unsqueeze(-1).expand_as(text)),
            "text_mask": mask.gather(1, order).to(text.dtype),
        }
