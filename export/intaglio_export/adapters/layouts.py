"""What the manifest holds of a family: latents, prompts, classes and defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from intaglio_export.bundle.chat_template import ChatTemplate
from intaglio_export.errors import ExportError


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
