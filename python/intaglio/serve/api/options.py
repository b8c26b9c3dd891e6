"""The options of `Pipeline.generate` that a request may set, taken from the library's own list.

Schemas, admission, Triton's inputs and the page derive from `REQUEST_OPTIONS`. This module needs no
package of the extra `serve`, since `intaglio deploy triton` imports it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import Enum

from intaglio import Pipeline, _core


class Kind(Enum):
    """The type of an option, by its annotation in the signature of `Pipeline.generate`."""

    TEXT = "str"
    INTEGER = "int"
    NUMBER = "float"
    RAMP = "Ramp"
    WINDOW = "Window"
    STEPS = "Sequence[int]"


@dataclass(frozen=True)
class RequestOption:
    """One option, with the help text that the command line shows too."""

    name: str
    kind: Kind
    help: str


# What a request draws. It sets either the class or the texts, depending on the bundle.
CLASS = ("class_label",)
TEXTS = ("prompt", "negative_prompt", "transport_from")
# How it draws that. A bundle has a default for each of these.
SAMPLING = ("steps", "cfg_scale", "cfg_window", "dg_scale", "dg_window", "ma_keep")

# What else changes how. A bundle has no defaults for these; one that is not given has no effect.
EXTRAS = (
    "scheduler", "guidance", "guidance_eta", "guidance_norm_threshold", "guidance_momentum",
    "guidance_zero_steps", "guidance_alpha", "guidance_rescale", "guidance_normalization",
    "guidance_tag", "guidance_prev", "slg_layers", "slg_share", "slg_scale", "slg_window",
    "ma_keep_by", "skip_interval", "skip_window", "skip_steps", "skip_tolerance", "skip",
)  # fmt: skip

# What an edit has besides: files and fields.
FILES = ("image", "mask")
EDITING = ("strength", "mask_blur", "mask_padding")


def _request_options() -> dict[str, RequestOption]:
    parameters = inspect.signature(Pipeline.generate).parameters
    options = {}
    for info in _core.option_infos():
        if info.name in {*CLASS, *TEXTS, *SAMPLING, *EXTRAS}:
            kind = Kind(parameters[info.name].annotation.removesuffix(" | None"))
            # The command line writes a ramp as S0:S1 and a list without brackets.
            text = info.help.replace("S0:S1", "[first, last]").replace(
                "A,B,... or @FILE.json", "[A, B, ...]"
            )
            options[info.name] = RequestOption(info.name, kind, text)
    return options


# By name, in the order of the library's list.
REQUEST_OPTIONS = _request_options()
