"""Read the builder's verbose log, because the engine inspector does not run without a GPU.

With verbosity DETAILED the log ends with one message that lists the layers, inputs and outputs of
the engine. Messages before it state its memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_TENSOR = re.compile(r"Name: ([^,]+), Dimensions: \[([^\]]*)\].*?Datatype: (\w+)")
_IO = re.compile(
    r"Name: (?P<name>[^,]+), IOMode: (?P<mode>\w+), DataType: (?P<dtype>\w+),"
    r" Dimensions: \[(?P<shape>[^\]]*)\]"
)
_ENDS = re.compile(r"MinShape: \[([^\]]*)\], OptShape: \[([^\]]*)\], MaxShape: \[([^\]]*)\]")
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
# These warnings name kernels that were not timed. The engine is complete without them.
_OF_TIMING = ("Tactic Device request", "Skipping tactic", "timing cache")


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
class Binding:
    """An input or output of the engine. `profiles` are (min, opt, max), for inputs only."""

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    profiles: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class EngineLog:
    """The log of one successful build, with `activation_bytes` for each profile."""

    layers: tuple[Layer, ...]
    bindings: tuple[Binding, ...]
    weights_bytes: int
    activation_bytes: tuple[int, ...]


class LogReader:
    """Keeps the important messages out of tens of thousands.

    `problems` are messages that make a build fail. `remarks` may explain why a build failed.
    """

    def __init__(self, kernels_are_timed: bool) -> None:
        self.problems: list[str] = []
        self.remarks: list[str] = []
        self._passing = _OF_TIMING if kernels_are_timed else ()
        self._text: list[str] = []

    def add(self, message: str, is_problem: bool) -> None:
        """Read a message. `is_problem` means that its severity is warning or above."""
        if is_problem:
            if any(passing in message for passing in self._passing):
                self.remarks.append(message.strip())
            elif not any(harmless in message for harmless in _HARMLESS):
                self.problems.append(message.strip())
        elif message.startswith(("Total ", "Layers:")):
            self._text.append(message)

    def result(self) -> EngineLog:
        """Return what was read.

        Raises:
            ValueError: the log has another form than in the versions that this was written for.
        """
        text = "\n".join(self._text)
        weights = _WEIGHTS.findall(text)
        layers = tuple(_layer(line) for line in text.splitlines() if "LayerType: " in line)
        bindings = tuple(_binding(found, line) for found, line in _io_lines(text.splitlines()))
        if not (len(weights) == 1 and layers and bindings):
            raise ValueError("no layers, tensors or memory in the builder's log")
        return EngineLog(
            layers, bindings, int(weights[0]), tuple(int(n) for n in _ACTIVATION.findall(text))
        )


def _io_lines(lines: Iterable[str]) -> list[tuple[re.Match[str], str]]:
    return [(found, line) for line in lines if (found := _IO.search(line))]


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


def _binding(found: re.Match[str], line: str) -> Binding:
    profiles = tuple(tuple(_numbers(end) for end in ends) for ends in _ENDS.findall(line))
    return Binding(
        found["name"],
        found["mode"] == "Input",
        _dtype(found["dtype"]),
        _numbers(found["shape"]),
        profiles,
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


def to_json(binding: Binding) -> dict[str, Any]:
    """Return the JSON object of `engine.schema.json`."""
    data: dict[str, Any] = {
        "name": binding.name,
        "dtype": binding.dtype,
        "shape": list(binding.shape),
    }
    if binding.is_input:
        data["profiles"] = [
            dict(zip(("min", "opt", "max"), map(list, ends), strict=True))
            for ends in binding.profiles
        ]
    return data
