"""What a graph's inputs and outputs are: names, roles, types and axes, as in the manifest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Axis = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. An axis is a fixed size or the name of a dynamic one."""

    role: str
    axes: tuple[Axis, ...]
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """Name in the ONNX graph: the role, since a role stands at most once in a graph."""
        return self.role

    def to_json(self) -> dict[str, object]:
        """As `bundle.schema.json` wants it."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "role": self.role, "dtype": dtype, "axes": list(self.axes)}


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file of the bundle: its path there, and its inputs and outputs in order.

    `dtype` is that of matrix products. `rewrites_attention`: ONNX Runtime has a better operator for
    attention without a mask than the standard one, and gets a graph of its own. `quantize` is a
    scheme of `passes/quantize_weights.py`, which keeps the stream's channels `exact` in float32.
    """

    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dtype: torch.dtype = torch.float32
    rewrites_attention: bool = False
    quantize: str | None = None
    exact: tuple[int, ...] = ()

    @property
    def cpu(self) -> str | None:
        """Path of the same graph for ONNX Runtime on the CPU, where it runs another one there."""
        if self.dtype == torch.float32 and not self.rewrites_attention:
            return None
        return f"{self.path.removesuffix('.onnx')}.cpu.onnx"

    def to_json(self) -> dict[str, object]:
        """As `bundle.schema.json` wants it."""
        paths = {"path": self.path} | ({"cpu": self.cpu} if self.cpu else {})
        return {
            **paths,
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
        }


@dataclass(frozen=True)
class ExportUnit:
    """A module, the graph it becomes, and example sizes for tracing it.

    `multiples` gives the axes that may only be a multiple of a number (image sides), `maxima` the
    largest size of an axis, `vocabulary` the number of token ids or classes. Traced sizes are at
    least 2: torch.export takes 0 and 1 for constants. `fed_by` makes inputs of this one.
    """

    module: torch.nn.Module
    spec: GraphSpec
    sizes: dict[str, int]
    multiples: dict[str, int]
    maxima: dict[str, int]
    vocabulary: int = 1
    fed_by: ExportUnit | None = None

    def example_inputs(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Random inputs of the traced sizes, in order."""
        return tuple(self.random_input(spec, self.sizes, generator) for spec in self.spec.inputs)

    @staticmethod
    def random_input(
        spec: TensorSpec, sizes: dict[str, int], generator: torch.Generator
    ) -> torch.Tensor:
        """A normal float tensor, or zeros for integers, of `spec` at `sizes`."""
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        if spec.dtype == torch.int64:
            return torch.zeros(shape, dtype=torch.int64)
        return torch.randn(shape, generator=generator, dtype=spec.dtype)
