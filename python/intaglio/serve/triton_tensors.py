"""Inputs and outputs of the model in Triton, which are the fields of the server's requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from intaglio.serve.api.options import CLASS, EXTRAS, REQUEST_OPTIONS, SAMPLING, TEXTS, Kind

# Images in one run of the transformer; the default of `intaglio serve`.
MAX_BATCH = 8
# Data type and dimensions of one image's entry; -1: any length, for a ramp one value, two, or one
# for each step.
_TYPES: dict[Kind, tuple[str, tuple[int, ...]]] = {
    Kind.TEXT: ("TYPE_STRING", (1,)),
    Kind.INTEGER: ("TYPE_INT64", (1,)),
    Kind.NUMBER: ("TYPE_FP64", (1,)),
    Kind.RAMP: ("TYPE_FP64", (-1,)),
    Kind.WINDOW: ("TYPE_FP64", (2,)),
    Kind.STEPS: ("TYPE_INT64", (-1,)),
}
# A request has to set one of these; every other option has a default.
_REQUIRED = {"prompt", "class_label"}


@dataclass(frozen=True)
class Tensor:
    """One input or output of Triton's model configuration.

    Attributes:
        data_type: name of the type in model_config.proto.
        dims: dimensions of one image's entry; -1: any length.
        optional: whether it may be left out, for the bundle's default.
    """

    name: str
    data_type: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True

    @property
    def is_list(self) -> bool:
        """Whether a request has a list there, also of a single value."""
        return self.dims[0] < 0 and self.data_type == "TYPE_INT64"

    @property
    def count(self) -> str:
        """The number of values of one image, in words."""
        if self.is_list:
            return "one or more"
        return {1: "one", 2: "two", -1: "one or more"}[self.dims[0]]


def inputs(manifest: dict[str, Any]) -> list[Tensor]:
    """Return the inputs of a bundle. A scale is one number, two (its ends), or one a step."""
    return [
        *map(_input, CLASS if "classes" in manifest else TEXTS),
        Tensor("size", "TYPE_STRING"),
        Tensor("seed", "TYPE_INT64"),
        *map(_input, (*SAMPLING, *EXTRAS)),
    ]


def _input(name: str) -> Tensor:
    data_type, dims = _TYPES[REQUEST_OPTIONS[name].kind]
    return Tensor(name, data_type, dims, optional=name not in _REQUIRED)


# The PNG file, with the options that draw it again inside, and its seed.
OUTPUTS = [Tensor("png", "TYPE_STRING"), Tensor("seed", "TYPE_INT64")]
