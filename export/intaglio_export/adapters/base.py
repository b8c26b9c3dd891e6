"""What the exporter asks of a DiT family. One file per family implements it; see `sd3.py`.

An adapter says where things are in the family's diffusers classes. It copies no model code: the
exporter runs the diffusers transformer itself and intervenes through hooks (`forking.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from intaglio_export.graphs import Axis

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TailCall:
    """A module after the blocks, and which of its positional arguments carry batch rows."""

    module: nn.Module
    row_arguments: tuple[int, ...]


@dataclass(frozen=True)
class LatentLayout:
    """The latent space, as the manifest's `latent` lists it; sizes in pixels."""

    channels: int
    vae_scale_factor: int
    scaling_factor: float
    shift_factor: float
    max_height: int
    max_width: int


@dataclass(frozen=True)
class TextSegment:
    """A stretch of the prompt sequence: outputs of `encoders` joined along channels, else zeros."""

    encoders: tuple[str, ...]
    length: int


@dataclass(frozen=True)
class PromptLayout:
    """How the encoders' outputs become the inputs `text` and `pooled`.

    `encoders` maps an encoder's folder to its tokenizer's folder; all use `max_length` tokens.
    """

    encoders: dict[str, str]
    max_length: int
    max_sequence_length: int
    text: tuple[TextSegment, ...]
    text_width: int
    pooled: tuple[str, ...]


@dataclass(frozen=True)
class PipelineDefaults:
    """What the diffusers pipeline itself would use; `height` and `width` in pixels."""

    steps: int
    cfg_scale: float
    height: int
    width: int
    max_sequence_length: int


class Adapter(ABC):
    """One loaded pipeline of one family. `pipeline` is the diffusers object, in eval mode."""

    family: ClassVar[str]
    pipeline_classes: ClassVar[tuple[str, ...]]
    prediction_type: ClassVar[str]

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @classmethod
    @abstractmethod
    def load(cls, folder: str) -> Adapter:
        """Read `folder` in float32. Errors are diffusers' own; the caller translates them."""

    @property
    def transformer(self) -> nn.Module:
        """The diffusers transformer."""
        module: nn.Module = self.pipeline.transformer
        return module

    @property
    def config(self) -> Mapping[str, Any]:
        """The transformer's diffusers configuration."""
        config: Mapping[str, Any] = self.pipeline.transformer.config
        return config

    # Where the blocks are and how the streams pass through them.

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks that carry the image stream, in order of execution."""

    @abstractmethod
    def split(self, output: Any) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """Of what a block returned: the image stream [B, T, C], and its other streams."""

    @abstractmethod
    def join(self, hidden: torch.Tensor, others: tuple[torch.Tensor | None, ...]) -> Any:
        """The inverse of `split`."""

    @property
    @abstractmethod
    def row_arguments(self) -> tuple[str, ...]:
        """Keyword arguments of a block, besides the streams, that carry a batch row."""

    @property
    @abstractmethod
    def tail(self) -> tuple[TailCall, ...]:
        """Modules after the blocks that are given tensors with a batch row from before them."""

    # The transformer's inputs.

    @abstractmethod
    def input_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of each float32 input by role, rows named `base_rows`, `latent` first."""

    @abstractmethod
    def output_axes(self) -> tuple[Axis, ...]:
        """Axes of the prediction, rows named `rows`."""

    @abstractmethod
    def predict(self, inputs: Inputs) -> torch.Tensor:
        """Run the transformer on inputs by role; timesteps in diffusers' unit."""

    @property
    @abstractmethod
    def patch_size(self) -> int:
        """Latent cells per token along one side."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """C: width of the image stream."""

    # What else the manifest tells the runtime.

    @abstractmethod
    def latent(self) -> LatentLayout:
        """Layout and scaling of the latents."""

    @abstractmethod
    def prompt(self, max_sequence_length: int) -> PromptLayout:
        """How prompts are encoded at `max_sequence_length` (diffusers' argument of that name)."""

    @abstractmethod
    def defaults(self) -> PipelineDefaults:
        """The pipeline's own defaults."""

    @abstractmethod
    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        """Inputs by role that depend on the prompts only, as the pipeline itself makes them."""

    @abstractmethod
    def scheduler(self, steps: int, latent: torch.Tensor) -> Any:
        """A copy of the pipeline's scheduler, its timesteps set for `steps` and `latent`'s size."""

    def left_out(self) -> list[str]:
        """Sentences on parts of the pipeline that the bundle will not hold."""
        return []
