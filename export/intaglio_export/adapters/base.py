"""The interface between the exporter and a DiT family. Each family has a file, such as `sd3.py`.

An adapter says where things are in the family's diffusers classes. It copies no model code: the
exporter runs the diffusers transformer and changes it through hooks (`networks/forking.py`).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from intaglio_export.adapters.schedulers import EULER
from intaglio_export.bundle.chat_template import ChatTemplate
from intaglio_export.errors import ExportError
from intaglio_export.graph_specs import Axis, ExportUnit, TensorSpec
from intaglio_export.precision import LowPrecisionMatmuls

Inputs = dict[str, torch.Tensor]
# The largest side in pixels, unless a position table ends earlier.
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class Modulation:
    """Values [B, W] of conditioning vectors that modulate the image or text stream.

    They are the result of `module`, a Linear. Where one network makes the values of all modules,
    they are instead the argument `argument` of `module`, and `shape` says how that is split, as
    [B, *shape]. `block` is the first block that they modulate; L stands for what follows the last
    of L blocks.
    """

    module: nn.Module
    block: int
    argument: str | None = None
    shape: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """W, the number of modulation values."""
        return math.prod(self.shape) if self.argument else int(self.module.out_features)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LatentLayout:
    """The latent space as in the manifest's `latent`, with sizes in pixels.

    If `packed`, the transformer takes [N, tokens, channels * patch_size^2], as FLUX does. If
    `fixed_size`, all images have max_height x max_width pixels.
    """

    channels: int
    vae_scale_factor: int
    scaling_factor: float
    shift_factor: float
    max_height: int
    max_width: int
    packed: bool = False
    fixed_size: bool = False

    def __post_init__(self) -> None:
        for name in ("scaling_factor", "shift_factor"):
            value = getattr(self, name)
            if not isinstance(value, float | int) or not math.isfinite(value):
                raise ExportError(
                    f"The file vae/config.json has the {name} {value}, where diffusers' pipeline"
                    " needs a number; take the model's own configuration."
                )


@dataclass(frozen=True)
class EncoderLayout:
    """A text encoder's tokenizer, tokens per prompt, and the outputs that are used.

    If `masked`, the encoder does not attend to padding. If `lowercase`, the pipeline converts the
    prompt to lower case and strips it. `taps` are the hidden states of a language model that are
    used, as in `networks/language_models.py`, and `template` is how a prompt is put into its chat.
    The transformer does not get the first `dropped` of the tokens, which belong to the template.
    With `pads_left`, padding comes before the prompt, where a token has nothing to attend to.
    """

    tokenizer: str
    max_length: int
    outputs: tuple[str, ...]
    masked: bool = False
    lowercase: bool = False
    taps: tuple[int, ...] = ()
    template: ChatTemplate | None = None
    dropped: int = 0
    pads_left: bool = False


@dataclass(frozen=True)
class TextSegment:
    """A segment of the prompt sequence: outputs of `encoders` joined along channels, or zeros."""

    encoders: tuple[str, ...]
    length: int


@dataclass(frozen=True)
class PromptLayout:
    """How the encoders' outputs become the inputs `text`, `text_mask` and `pooled`.

    `text_mask` is the encoder whose token mask the transformer takes, or None. That mask also holds
    the first `mask_padding` tokens of padding after a prompt.
    """

    max_sequence_length: int
    encoders: dict[str, EncoderLayout]
    text: tuple[TextSegment, ...]
    text_width: int
    pooled: tuple[str, ...] = ()
    text_mask: str | None = None
    mask_padding: int = 0


@dataclass(frozen=True)
class ClassLayout:
    """Class labels 0..count-1, and the label for no class."""

    count: int
    null: int


@dataclass(frozen=True)
class PipelineDefaults:
    """The defaults of the diffusers pipeline; `height` and `width` are in pixels."""

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
    # Text encoders in the pipeline's order, and those of them that are optional.
    text_encoders: ClassVar[tuple[str, ...]] = ()
    optional_encoders: ClassVar[tuple[str, ...]] = ()
    # "linspace" if the pipeline passes its own sigmas linspace(1, 1/N, N) to the scheduler.
    sigmas: ClassVar[str | None] = None
    # The pipeline's argument for true classifier-free guidance.
    cfg_argument: ClassVar[str] = "guidance_scale"
    # "token" if the pipeline scales CFG's result to the norm of D_c in each token.
    cfg_rescale: ClassVar[str | None] = None
    # The max_shift of a dynamic shift, if the scheduler's configuration has none.
    max_shift: ClassVar[float] = 1.15
    # "empirical" if the dynamic shift is that of diffusers' compute_empirical_mu.
    mu: ClassVar[str | None] = None
    # Whether a run may start from an image, which the VAE encodes.
    image_to_image: ClassVar[bool] = True

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is the type of matrix products; see `precision.py`."""
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

    @property
    def has_encoders(self) -> bool:
        """Whether the pipeline can encode prompts, even if without its optional encoders."""
        needed = (name for name in self.text_encoders if name not in self.optional_encoders)
        return all(getattr(self.pipeline, name) is not None for name in needed)

    # Where the blocks are, and what they take and return.

    def blocks(self) -> Sequence[nn.Module]:
        """Return all blocks that change the image stream, in order of execution."""
        return list(self.transformer.transformer_blocks)

    def split(
        self, block: nn.Module, streams: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """Split what `block` takes as hidden_states, or returns, into the image stream [B, T, C]
        and the other streams.

        Joint blocks return (encoder_hidden_states, hidden_states), others hidden_states alone.
        """
        if isinstance(streams, tuple):
            return streams[-1], streams[:-1]
        return streams, ()

    def join(
        self, block: nn.Module, hidden: torch.Tensor, others: tuple[torch.Tensor | None, ...]
    ) -> Any:
        """Undo `split`."""
        return (*others, hidden) if others else hidden

    @property
    def prompt_tokens(self) -> slice:
        """Where the prompt's tokens are in the first of the other streams."""
        return slice(None)

    def attention(self, block: nn.Module) -> nn.Module:
        """Return the block's attention over image tokens, whose first input is AdaLN's output."""
        return block.attn  # type: ignore[return-value]

    def gating(self, block: nn.Module) -> nn.Module:
        """Return the module of `block` whose call contains the gate."""
        return block.norm1  # type: ignore[return-value]

    def gate(self, block: nn.Module, kwargs: Mapping[str, Any], output: Any) -> torch.Tensor:
        """Return alpha [B, C], AdaLN's residual gate of attention, from a call of `gating`."""
        alpha: torch.Tensor = output[1]
        return alpha

    @property
    def row_arguments(self) -> tuple[str, ...]:
        """The arguments of a block, besides streams, that have a batch axis and are used.

        A kind of block that does not have all of them takes those that it has.
        """
        return ()

    # What depends only on prompt and timestep, and is computed before the denoising loop.

    @abstractmethod
    def modulations(self) -> tuple[Modulation, ...]:
        """Return the matmuls that conditioning vectors end in, in the order of their blocks."""

    # Whether `project` reads the mask of the prompt, since tokens attend to each other there.
    projects_with_mask: ClassVar[bool] = False

    def projection(self) -> tuple[nn.Module, ...]:
        """Return the modules that `text` passes before the blocks, in order; empty without text."""
        return ()

    # The transformer's inputs.

    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the transformer's inputs, `latent` first. Their rows are called `base_rows`."""

    def output_axes(self) -> tuple[Axis, ...]:
        """Return the axes of the prediction, which are those of the latent with rows `rows`."""
        return ("rows", *self.inputs()[0].axes[1:])

    @abstractmethod
    def predict(self, inputs: Inputs) -> torch.Tensor:
        """Run the transformer on inputs by role. Timesteps are in the scheduler's unit."""

    def run(self, inputs: Inputs, where: Callable[[], str] | None = None) -> torch.Tensor:
        """Call `predict` in the adapter's precision. `where` names the current part for errors."""
        with LowPrecisionMatmuls(self.dtype, where or (lambda: "the transformer")):
            return self.predict(inputs)

    def project(self, text: torch.Tensor, text_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the context [P, T, D] that the blocks get for `text` [P, T, text_width].

        `text_mask` [P, T] is given if `projects_with_mask`.
        """
        with LowPrecisionMatmuls(self.dtype, lambda: "the prompt's projection"):
            for module in self.projection():
                text = module(text)
        return text

    @property
    def patch_size(self) -> int:
        """Latent cells per token along one side."""
        return int(self.transformer.config.patch_size)

    @property
    def size_multiple(self) -> int:
        """The number of pixels of which every image side is a multiple: one token's side."""
        return self.latent().vae_scale_factor * self.patch_size

    @property
    def channels(self) -> int:
        """C, the number of channels of the hidden states."""
        return int(self.transformer.inner_dim)

    # What else the manifest holds.

    @abstractmethod
    def latent(self) -> LatentLayout:
        """Return the layout and scaling of the latents."""

    @property
    def vae_channels(self) -> int:
        """The number of channels between the VAE's own encoder and decoder."""
        return self.latent().channels

    def prompt(self, max_sequence_length: int) -> PromptLayout | None:
        """Return how prompts are encoded, or None for a model without prompts."""
        return None

    def classes(self) -> ClassLayout | None:
        """Return the class labels, or None for a model without classes."""
        return None

    @property
    @abstractmethod
    def default_side(self) -> int:
        """Pixels along a side of the square that the pipeline draws by default."""

    @property
    def distilled_guidance(self) -> float | None:
        """The default of a guidance-distilled model's guidance input, or None."""
        return None

    @property
    def fixed_mu(self) -> float | None:
        """The mu of a dynamic shift that the pipeline uses for all sizes, or None."""
        return None

    @cached_property
    def distilled(self) -> bool:
        """Whether the model was distilled to do without CFG. Settings may say otherwise."""
        return False

    def guesses(self) -> list[str]:
        """Return sentences about what is guessed where the settings do not say it."""
        return []

    def defaults(self) -> PipelineDefaults:
        """Return the defaults of the pipeline."""
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
        """Return the inputs that depend only on the prompts, as the pipeline computes them."""

    def random_text(self, rows: int, length: int) -> Inputs:
        """Return normal numbers in place of encoded prompts, on which |z| hardly depends."""
        specs = [spec for spec in self.inputs() if spec.role in ("text", "text_mask", "pooled")]
        sizes = {"base_rows": rows, "text_length": length}
        inputs = {
            spec.role: ExportUnit.random_input(spec, sizes, torch.Generator().manual_seed(0))
            for spec in specs
        }
        if "text_mask" in inputs:
            inputs["text_mask"].fill_(1.0)
        return inputs

    # The VAE converts between unscaled latents and images [N, 3, H, W] in [-1, 1].

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the image, which is not clamped."""
        image: torch.Tensor = self.pipeline.vae.decode(latents, return_dict=False)[0]
        return image

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Return the mean of the latents."""
        mean: torch.Tensor = self.pipeline.vae.encode(image, return_dict=False)[0].mean
        return mean

    def scheduler(self, steps: int, tokens: int) -> Any:
        """Return a copy of the scheduler with timesteps for images of `tokens` tokens."""
        scheduler = deepcopy(self.pipeline.scheduler)
        extra: dict[str, Any] = {}
        if scheduler.config.get("use_dynamic_shifting"):
            extra["mu"] = self._shift(scheduler.config, tokens, steps)
        # The pipeline passes its own sigmas to this scheduler only.
        if self.sigmas == "linspace" and type(scheduler).__name__ == EULER:
            extra["sigmas"] = np.linspace(1.0, 1 / steps, steps)
            scheduler.set_timesteps(**extra)
        else:
            scheduler.set_timesteps(steps, **extra)
        return scheduler

    def _shift(self, config: Mapping[str, Any], tokens: int, steps: int) -> float:
        """Return mu for `tokens` image tokens, interpolated as in diffusers' `calculate_shift`."""
        if self.fixed_mu is not None:
            return self.fixed_mu
        first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", self.max_shift)
        mu: float = low + (high - low) / (last - first) * (tokens - first)
        return mu

    def call_default(self, name: str) -> Any:
        """Return the default of an argument of the pipeline's `__call__`, or None."""
        argument = inspect.signature(type(self.pipeline).__call__).parameters.get(name)
        return argument.default if argument else None

    def left_out(self) -> list[str]:
        """Return sentences about parts of the pipeline that the bundle does not hold."""
        return []
