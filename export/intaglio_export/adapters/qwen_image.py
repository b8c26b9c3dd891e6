"""Qwen-Image: diffusers' `QwenImageTransformer2DModel`, arXiv 2508.02324."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from intaglio_export.adapters.base import (
    EncoderLayout,
    Inputs,
    Modulation,
    PromptLayout,
    TextSegment,
)
from intaglio_export.adapters.qwen_vae import QwenVaeAdapter
from intaglio_export.bundle.chat_template import ChatTemplate
from intaglio_export.errors import ExportError
from intaglio_export.graph_specs import TensorSpec
from intaglio_export.support.patching import replaced


class QwenImageAdapter(QwenVaeAdapter):
    """`QwenImagePipeline`: Qwen2.5-VL reads the prompt in a template of the pipeline."""

    family = "qwen-image"
    pipeline_classes = ("QwenImagePipeline",)
    prediction_type = "velocity"
    text_encoders = ("text_encoder",)
    sigmas = "linspace"
    cfg_argument = "true_cfg_scale"
    cfg_rescale = "token"

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(pipeline, dtype)
        if self.transformer.config.zero_cond_t or self.transformer.config.use_layer3d_rope:
            raise ExportError(
                "The transformer is from Qwen-Image-Edit or -Layered (zero_cond_t or"
                " use_layer3d_rope); this version exports the text-to-image model only."
            )
        self._positions = _Positions(self.transformer.pos_embed)

    def gating(self, block: nn.Module) -> nn.Module:
        return block.img_mod  # type: ignore[return-value]

    def gate(self, block: nn.Module, kwargs: Mapping[str, Any], output: Any) -> torch.Tensor:
        """Return the gate out of shift, scale and gate of attention, then of the MLP."""
        alpha: torch.Tensor = output.chunk(6, dim=-1)[2]
        return alpha

    @property
    def row_arguments(self) -> tuple[str, ...]:
        return ("encoder_hidden_states_mask",)

    def modulations(self) -> tuple[Modulation, ...]:
        modulations = [
            Modulation(modulate[1], k)
            for k, block in enumerate(self.transformer.transformer_blocks)
            for modulate in (block.img_mod, block.txt_mod)
        ]
        return (*modulations, Modulation(self.transformer.norm_out.linear, len(self.blocks())))

    def projection(self) -> tuple[nn.Module, ...]:
        return (self.transformer.txt_norm, self.transformer.txt_in)

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
        positions = (self.transformer.pos_embed, "forward", self._positions.forward)
        with replaced([positions]), self._masked(inputs["text_mask"].bool()):
            prediction: torch.Tensor = self.transformer(
                hidden_states=inputs["latent"],
                encoder_hidden_states=inputs["text"],
                timestep=inputs["timestep"] / 1000,
                img_shapes=inputs["position"],
                return_dict=False,
            )[0]
        return prediction

    @contextmanager
    def _masked(self, mask: torch.Tensor) -> Iterator[None]:
        """Give the mask to the blocks, because the transformer's own code fixes the text's length.

        This is the first hook of a block, because the hooks of the fork gather the mask's rows.
        """

        def before_block(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"encoder_hidden_states_mask": mask}

        handles = [
            block.register_forward_pre_hook(before_block, with_kwargs=True, prepend=True)
            for block in self.blocks()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def prompt(self, max_sequence_length: int) -> PromptLayout:
        return PromptLayout(
            max_sequence_length=max_sequence_length,
            encoders={"text_encoder": self._encoder(max_sequence_length)},
            text=(TextSegment(("text_encoder",), max_sequence_length),),
            text_width=self.transformer.config.joint_attention_dim,
            text_mask="text_encoder",
        )

    def _encoder(self, max_sequence_length: int) -> EncoderLayout:
        """Return the layout of Qwen2.5-VL, whose last hidden state is used.

        Its rotary positions in three axes are all equal for text, and so plain positions.
        """
        dropped = int(self.pipeline.prompt_template_encode_start_idx)
        return EncoderLayout(
            "tokenizer",
            max_sequence_length + dropped,
            ("hidden",),
            masked=True,
            taps=(-1,),
            template=ChatTemplate(text=self.pipeline.prompt_template_encode),
            dropped=dropped,
        )

    @property
    def default_side(self) -> int:
        return int(self.pipeline.default_sample_size * self.pipeline.vae_scale_factor)

    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        text, mask = self.pipeline.encode_prompt(
            prompts, device=torch.device("cpu"), max_sequence_length=max_sequence_length
        )
        mask = text.new_ones(text.shape[:2]) if mask is None else mask.to(text.dtype)
        padding = max_sequence_length - text.shape[1]  # the pipeline pads to the longest prompt
        return {
            "text": functional.pad(text, (0, 0, 0, padding)),
            "text_mask": functional.pad(mask, (0, padding)),
        }


class _Positions(nn.Module):
    """`QwenEmbedRope` for positions instead of image shapes, which a trace treats as constants.

    Rows and columns are counted from the middle, as with `scale_rope`. The text continues on the
    diagonal from the larger half side.
    """

    table: torch.Tensor

    def __init__(self, rope: Any) -> None:
        super().__init__()
        self._axes = [size // 2 for size in rope.axes_dim]
        table = torch.view_as_real(torch.cat([rope.neg_freqs, rope.pos_freqs]))
        self._zero = len(rope.neg_freqs)
        self.register_buffer("table", table, persistent=False)

    def forward(
        self, position: torch.Tensor, max_txt_seq_len: int, device: torch.device
    ) -> tuple[_Rotations, _Rotations]:
        """Return the rotations of image tokens at `position` [tokens, 3], and of text tokens."""
        index = position.long()
        halves = (index.amax(0) + 2) // 2  # the larger half of each axis
        centred = index - torch.where(torch.arange(3) == 0, 0, halves)
        tables = torch.split(self.table, self._axes, dim=1)
        image = [table[self._zero + centred[:, i]] for i, table in enumerate(tables)]
        sizes = (index.amax(0) + 1) // 2
        text = self._zero + sizes[1:].max() + torch.arange(max_txt_seq_len)
        return _Rotations(torch.cat(image, dim=1)), _Rotations(self.table[text])


@dataclass(frozen=True)
class _Rotations:
    """Complex numbers as [S, D/2, 2], because torch's exporter cannot unsqueeze complex ones."""

    parts: torch.Tensor

    def unsqueeze(self, dim: int) -> torch.Tensor:
        return torch.view_as_complex(self.parts.unsqueeze(dim))
