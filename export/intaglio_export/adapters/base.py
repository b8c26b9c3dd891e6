"""What the exporter asks of a DiT family. One file per family implements it; see `sd3.py`.

An adapter says where things are in the family's diffusers classes. It copies no model code: the
exporter runs the diffusers transformer itself and intervenes through hooks (`forking.py`).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from intaglio_export.adapters.schedulers import EULER
from intaglio_export.graph_specs import Axis, ExportUnit, TensorSpec
from intaglio_export.precision import LowPrecisionMatmuls

Inputs = dict[str, torch.Tensor]
# Pixels along a side where no position table ends earlier.
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class Modulation:
    """A product over conditioning vectors whose result [B, W] modulates the image or text stream.

    `block` is the first that it modulates; what follows the last of L blocks is block L.
    """

    linear: nn.Linear
    block: int

    @property
    def width(self) -> int:
        """W."""
        return self.linear.out_features


@dataclass(frozen=True)
class LatentLayout:
    """The latent space, as the manifest's `latent` lists it; sizes in pixels.

    `packed`: the transformer takes [N, tokens, channels * patch_size^2], as FLUX packs them.
    `fixed_size`: images are max_height x max_width and nothing else.
    """

    channels: int
    vae_scale_factor: int
    scaling_factor: float
    shift_factor: float
    max_height: int
    max_width: int
    packed: bool = False
    fixed_size: bool = False


@dataclass(frozen=True)
class EncoderLayout:
    """A text encoder's tokenizer, tokens per prompt, and what it is asked for.

    `masked`: padding is hidden from it. `lowercase`: the pipeline lowers and strips the prompt.
    """

    tokenizer: str
    max_length: int
    outputs: tuple[str, ...]
    masked: bool = False
    lowercase: bool = False


@dataclass(frozen=True)
class TextSegment:
    """A stretch of the prompt sequence: outputs of `encoders` joined along channels, else zeros."""

    encoders: tuple[str, ...]
    length: int


@dataclass(frozen=True)
class PromptLayout:
    """How the encoders' outputs become the inputs `text`, `text_mask` and `pooled`.

    `text_mask` names the encoder whose token mask the transformer takes, if it takes one.
    """

    max_sequence_length: int
    encoders: dict[str, EncoderLayout]
    text: tuple[TextSegment, ...]
    text_width: int
    pooled: tuple[str, ...] = ()
    text_mask: str | None = None


@dataclass(frozen=True)
class ClassLayout:
    """Class labels 0..count-1, and the label that stands for none."""

    count: int
    null: int


@dataclass(frozen=True)
class PipelineDefaults:
    """What the diffusers pipeline itself would use; `height` and `width` in pixels."""

    steps: int
    cfg_scale: float
    height: int
    width: int
    max_sequence_length: int | None = None
    distilled_guidance: float | None = None


class Adapter(ABC):
    """One loaded pipeline of one family. `pipeline` is the diffusers object, in eval mode."""

    family: ClassVar[str]
    pipeline_classes: ClassVar[tuple[str, ...]]
    prediction_type: ClassVar[str]
    # Text encoders in the pipeline's order, and those among them it can do without.
    text_encoders: ClassVar[tuple[str, ...]] = ()
    optional_encoders: ClassVar[tuple[str, ...]] = ()
    # "linspace": the pipeline gives the scheduler sigmas linspace(1, 1/N, N) of its own.
    sigmas: ClassVar[str | None] = None
    # What the pipeline calls true classifier-free guidance.
    cfg_argument: ClassVar[str] = "guidance_scale"
    # Of a dynamic shift, where the scheduler's configuration has none.
    max_shift: ClassVar[float] = 1.15

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is that of matrix products; see `precision.py`."""
        self.pipeline = pipeline
        self.dtype = dtype

    @property
    def transformer(self) -> Any:
        """The diffusers transformer."""
        return self.pipeline.transformer

    @property
    def config(self) -> Mapping[str, Any]:
        """The transformer's diffusers configuration."""
        config: Mapping[str, Any] = self.pipeline.transformer.config
        return config

    # Where the blocks are and what passes by them.

    def blocks(self) -> Sequence[nn.Module]:
        """All blocks that carry the image stream, in order of execution."""
        return list(self.transformer.transformer_blocks)

    def split(self, output: Any) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """Of what a block returned: the image stream [B, T, C], and its other streams.

        Joint blocks return (encoder_hidden_states, hidden_states), others hidden_states alone.
        """
        if isinstance(output, tuple):
            return output[-1], output[:-1]
        return output, ()

    def join(self, hidden: torch.Tensor, others: tuple[torch.Tensor | None, ...]) -> Any:
        """The inverse of `split`."""
        return (*others, hidden) if others else hidden

    def attention(self, block: nn.Module) -> nn.Module:
        """The block's attention over image tokens; its first input is AdaLN's output."""
        return block.attn  # type: ignore[return-value]

    def gating(self, block: nn.Module) -> nn.Module:
        """The module of `block` whose call `gate` is read from."""
        return block.norm1  # type: ignore[return-value]

    def gate(self, block: nn.Module, kwargs: Mapping[str, Any], output: Any) -> torch.Tensor:
        """alpha [B, C], AdaLN's residual gate of attention, of a call of `gating(block)`."""
        alpha: torch.Tensor = output[1]
        return alpha

    @property
    def row_arguments(self) -> tuple[str, ...]:
        """Keyword arguments of a block, besides streams and `temb`, that carry a batch row."""
        return ()

    # What depends on prompt and timestep alone, and is computed ahead of the loop.

    @abstractmethod
    def modulations(self) -> tuple[Modulation, ...]:
        """Where conditioning vectors end, in the order of the blocks that they are for."""

    def projection(self) -> tuple[nn.Module, ...]:
        """What `text` passes before the blocks, one after the other; empty for no text."""
        return ()

    # The transformer's inputs.

    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The transformer's inputs by role, rows named `base_rows`, `latent` first."""

    def output_axes(self) -> tuple[Axis, ...]:
        """Axes of the prediction, rows named `rows`: those of the latent."""
        return ("rows", *self.inputs()[0].axes[1:])

    @abstractmethod
    def predict(self, inputs: Inputs) -> torch.Tensor:
        """Run the transformer on inputs by role; timesteps in the scheduler's unit."""

    def run(self, inputs: Inputs, where: Callable[[], str] | None = None) -> torch.Tensor:
        """`predict` in the adapter's precision; `where` names the place of an overflow."""
        with LowPrecisionMatmuls(self.dtype, where or (lambda: "the transformer")):
            return self.predict(inputs)

    def project(self, text: torch.Tensor) -> torch.Tensor:
        """The context [P, T, D] that blocks are given for `text` [P, T, text_width]."""
        with LowPrecisionMatmuls(self.dtype, lambda: "the prompt's projection"):
            for module in self.projection():
                text = module(text)
        return text

    @property
    def patch_size(self) -> int:
        """Latent cells per token along one side."""
        return int(self.transformer.config.patch_size)

    @property
    def channels(self) -> int:
        """C: width of the image stream."""
        return int(self.transformer.inner_dim)

    # What else the manifest tells the runtime.

    @abstractmethod
    def latent(self) -> LatentLayout:
        """Layout and scaling of the latents."""

    def prompt(self, max_sequence_length: int) -> PromptLayout | None:
        """How prompts are encoded at `max_sequence_length`; None for a model without prompts."""
        return None

    def classes(self) -> ClassLayout | None:
        """Class labels, for a model that is conditioned by them."""
        return None

    @property
    @abstractmethod
    def default_side(self) -> int:
        """Pixels along a side of the square that the pipeline draws unless told otherwise."""

    @property
    def distilled_guidance(self) -> float | None:
        """What a guidance-distilled model is given by default; None for another."""
        return None

    def defaults(self) -> PipelineDefaults:
        """The pipeline's own defaults."""
        return PipelineDefaults(
            steps=self.call_default("num_inference_steps"),
            cfg_scale=self.call_default(self.cfg_argument),
            height=self.default_side,
            width=self.default_side,
            max_sequence_length=self.call_default("max_sequence_length"),
            distilled_guidance=self.distilled_guidance,
        )

    @abstractmethod
    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        """Inputs by role that depend on the prompts only, as the pipeline itself makes them."""

    def random_text(self, rows: int, length: int) -> Inputs:
        """Normal numbers for prompts where no encoder is at hand: |z| hardly depends on them."""
        specs = [spec for spec in self.inputs() if spec.role in ("text", "text_mask", "pooled")]
        sizes = {"base_rows": rows, "text_length": length}
        inputs = {
            spec.role: ExportUnit.random_input(spec, sizes, torch.Generator().manual_seed(0))
            for spec in specs
        }
        if "text_mask" in inputs:
            inputs["text_mask"].fill_(1.0)
        return inputs

    # The VAE, between latents whose scaling is undone and images [N, 3, H, W] in [-1, 1].

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The image, not clamped."""
        image: torch.Tensor = self.pipeline.vae.decode(latents, return_dict=False)[0]
        return image

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """The mean of the latents."""
        mean: torch.Tensor = self.pipeline.vae.encode(image, return_dict=False)[0].mean
        return mean

    def scheduler(self, steps: int, tokens: int) -> Any:
        """A copy of the pipeline's scheduler, timesteps set for images of `tokens` tokens."""
        scheduler = deepcopy(self.pipeline.scheduler)
        extra: dict[str, Any] = {}
        if scheduler.config.get("use_dynamic_shifting"):
            extra["mu"] = self._shift(scheduler.config, tokens)
        # The pipeline gives its own to no other scheduler that there is.
        if self.sigmas == "linspace" and type(scheduler).__name__ == EULER:
            extra["sigmas"] = np.linspace(1.0, 1 / steps, steps)
            scheduler.set_timesteps(**extra)
        else:
            scheduler.set_timesteps(steps, **extra)
        return scheduler

    def _shift(self, config: Mapping[str, Any], tokens: int) -> float:
        """mu of `tokens` image tokens: linear between two lengths, as in `calculate_shift`."""
        first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", self.max_shift)
        mu: float = low + (high - low) / (last - first) * (tokens - first)
        return mu

    def call_default(self, name: str) -> Any:
        """The default of an argument of the pipeline's `__call__`, None if it has none."""
        argument = inspect.signature(type(self.pipeline).__call__).parameters.get(name)
        return argument.default if argument else None

    def left_out(self) -> list[str]:
        """Sentences on parts of the pipeline that the bundle will not hold."""
        return []
