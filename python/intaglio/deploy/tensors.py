"""Inputs and outputs of the model in Triton: the fields of the server's requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Images in one run of the transformer, as `intaglio serve` has it unless told otherwise.
MAX_BATCH = 8


@dataclass(frozen=True)
class Tensor:
    """One input or output, as Triton's model configuration has it.

    Attributes:
        data_type: by the name in model_config.proto.
        dims: of one image's entry; -1: any length.
        optional: the bundle's default stands in for it.
    """

    name: str
    data_type: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True

    @property
    def count(self) -> str:
        """How many values one image's entry has, in words."""
        return {1: "one", 2: "two", -1: "one or two"}[self.dims[0]]


def inputs(manifest: dict[str, Any]) -> list[Tensor]:
    """Those of a bundle. Scales take one number, or two: at the first and the last step."""
    texts = [
        Tensor("prompt", "TYPE_STRING", optional=False),
        Tensor("negative_prompt", "TYPE_STRING"),
    ]
    labels = [Tensor("class_label", "TYPE_INT64", optional=False)]
    return [
        *(labels if "classes" in manifest else texts),
        Tensor("size", "TYPE_STRING"),
        Tensor("seed", "TYPE_INT64"),
        Tensor("steps", "TYPE_INT64"),
        Tensor("cfg_scale", "TYPE_FP64", (-1,)),
        Tensor("cfg_window", "TYPE_FP64", (2,)),
        Tensor("dg_scale", "TYPE_FP64", (-1,)),
        Tensor("dg_window", "TYPE_FP64", (2,)),
        Tensor("ma_keep", "TYPE_FP64", (-1,)),
    ]  # fmt: skip


# The file as the server makes it, with how to draw it again inside; and the seed for it.
OUTPUTS = [Tensor("png", "TYPE_STRING"), Tensor("seed", "TYPE_INT64")]
