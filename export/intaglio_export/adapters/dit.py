"""DiT-XL/2: diffusers' `DiTTransformer2DModel`, conditioned by class; arXiv 2212.09748."""

from __future__ import annotations

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter, Inputs, Modulation
from intaglio_export.adapters.layouts import ClassLayout, LatentLayout
from intaglio_export.graph_specs import TensorSpec


class DiTAdapter(Adapter):
    """`DiTPipeline`, which predicts noise and an unused sigma, at one square size."""

    family = "dit"
    pipeline_classes = ("DiTPipeline",)
    prediction_type = "epsilon"

    def attention(self, block: nn.Module) -> nn.Module:
        return block.attn1  # type: ignore[return-value]

    def modulations(self) -> tuple[Modulation, ...]:
        blocks = self.transformer.transformer_blocks
        norms = [Modulation(block.norm1.linear, k) for k, block in enumerate(blocks)]
        return (*norms, Modulation(self.transformer.proj_out_1, len(blocks)))

    def inputs(self) -> tuple[TensorSpec, ...]:
        config = self.transformer.config
        cells = (config.sample_size, config.sample_size)
        return (
            TensorSpec("latent", ("base_rows", config.in_channels, *cells)),
            TensorSpec("timestep", ("base_rows",)),
            TensorSpec("class", ("base_rows",), torch.int64),
        )

    def predict(self, inputs: Inputs) -> torch.Tensor:
        prediction: torch.Tensor = self.transformer(
            inputs["latent"],
            timestep=inputs["timestep"],
            class_labels=inputs["class"],
            return_dict=False,
        )[0]
        # The second half is the learned sigma, which our samplers do not use.
        return prediction[:, : self.transformer.config.in_channels]

    def latent(self) -> LatentLayout:
        config = self.transformer.config
        vae = self.pipeline.vae.config
        scale = 2 ** (len(vae.block_out_channels) - 1)
        return LatentLayout(
            channels=config.in_channels,
            vae_scale_factor=scale,
            scaling_factor=vae.scaling_factor,
            shift_factor=0.0,
            max_height=config.sample_size * scale,
            max_width=config.sample_size * scale,
            fixed_size=True,
        )

    def classes(self) -> ClassLayout:
        count = self.transformer.config.num_embeds_ada_norm
        return ClassLayout(count=count, null=count)

    @property
    def default_side(self) -> int:
        return int(self.latent().max_height)

    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        """Return classes spread over the whole range in place of the prompts."""
        count = self.classes().count
        labels = torch.linspace(0, count - 1, len(prompts)).round().long()
        return {"class": labels}
