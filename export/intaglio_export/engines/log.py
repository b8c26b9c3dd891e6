"""Read the builder's verbose log, because the engine inspector does not run without a GPU.

With verbosity DETAILED the log ends with one message that lists the layers of the engine. Messages
before it state its memory. Another version may word them otherwise, so a build does not depend on
them: what is not found is not reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_TENSOR = re.compile(r"Name: ([^,]+), Dimensions: \[([^\]]*)\].*?Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_DTYPES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Int64": "int64",
    "Int32": "int32",
    "Bool": "bool",
}
# This warning appears for every int64 input, and ours must be int64.
_HARMLESS = ("Int64 binding",)
# TensorRT only warns when a profile contradicts the graph, and then builds an engine that cannot
# run at that size.
_OF_PROFILES = ("profile", "Profile")


@dataclass(frozen=True)
class Tensor:
    """A tensor between layers. A size of -1 is dynamic."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layer:
    """A layer of the engine. `nodes` are its ONNX nodes with their callers."""

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class EngineLog:
    """What the log of one successful build says.

    Attributes:
        layers: empty if the log does not list them.
        weights_bytes: None if the log does not state them.
        activation_bytes: for each profile; empty if the log does not state them.
        remarks: warnings that did not fail the build.
    """

    layers: tuple[Layer, ...] = ()
    weights_bytes: int | None = None
    activation_bytes: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()


class LogReader:
    """Keeps the important messages out of tens of thousands.

    `problems` are messages that make a build fail. `remarks` are other warnings, which may explain
    why a build failed.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.remarks: list[str] = []
        self._text: list[str] = []

    def add(self, message: str, level: Literal["error", "warning", "info"]) -> None:
        """Read a message."""
        if level == "info":
            if message.startswith(("Total ", "Layers:")):
                self._text.append(message)
        elif level == "error" or any(word in message for word in _OF_PROFILES):
            self.problems.append(message.strip())
        elif not any(harmless in message for harmless in _HARMLESS):
            self.remarks.append(message.strip())

    def result(self) -> EngineLog:
        """Return what was read."""
        text = "\n".join(self._text)
        weights = [int(number) for number in _WEIGHTS.findall(text)]
        return EngineLog(
            tuple(_layer(line) for line in text.splitlines() if "LayerType: " in line),
            weights[0] if len(weights) == 1 else None,
            tuple(int(number) for number in _ACTIVATION.findall(text)),
            tuple(dict.fromkeys(self.remarks)),
        )


def _layer(line: str) -> Layer:
    """Read a line `Name: ..., LayerType: ..., Inputs: [...], ..., Outputs: [...], ...`."""
    head, _, rest = line.partition(", Inputs: ")
    inputs, _, rest = rest.partition(", Constants: ")
    outputs, _, rest = rest.partition(", Outputs: ")[2].partition(", TacticName: ")
    name, _, kind = head.removeprefix("Name: ").partition(", LayerType: ")
    return Layer(name, kind, _tensors(inputs), _tensors(outputs), tuple(_NODE.findall(rest)))


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name, _numbers(shape), _dtype(dtype)) for name, shape, dtype in _TENSOR.findall(text)
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def _dtype(name: str) -> str:
    return _DTYPES.get(name, name.lower())


def layer_types(layers: Iterable[Layer]) -> dict[str, int]:
    """Count the layers of each kind, the most common first."""
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.kind] = counts.get(layer.kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
