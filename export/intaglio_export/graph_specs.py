"""The inputs and outputs of a graph: names, roles, types and axes, as in the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

Axis = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. An axis is a fixed size or the name of a dynamic size."""

    role: str
    axes: tuple[Axis, ...]
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """The name in the ONNX graph, which is the role: a graph has each role at most once."""
        return self.role

    def to_json(self) -> dict[str, object]:
        """Return the JSON object of `bundle.schema.json`."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "role": self.role, "dtype": dtype, "axes": list(self.axes)}


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file of the bundle: its path, and its inputs and outputs in order.

    `dtype` is the type of matrix products. With `rewrites_attention` ONNX Runtime gets a graph of
    its own, because it has a better operator than the standard one for attention without a mask.
    `quantize` is a scheme of `passes/quantize_weights.py` or `passes/quantize_dequantize.py`, which
    keep the channels `exact` of the hidden states in float32.
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
        """The path of the variant for ONNX Runtime on the CPU, or None if there is no variant."""
        if self.quantize == "fp4" or (self.dtype == torch.float32 and not self.rewrites_attention):
            return None
        return f"{self.path.removesuffix('.onnx')}.cpu.onnx"

    @property
    def simulated(self) -> str | None:
        """The path of a form that is only run to measure errors, of FP4, which the CPU lacks."""
        return f"{self.path.removesuffix('.onnx')}.fp4.onnx" if self.quantize == "fp4" else None

    @property
    def decomposed(self) -> str | None:
        """The path of the form for compiling providers, or None: they take no quantised weights."""
        return None if self.quantize else f"{self.path.removesuffix('.onnx')}.decomposed.onnx"

    def to_json(self) -> dict[str, object]:
        """Return the JSON object of `bundle.schema.json`."""
        forms = {"cpu": self.cpu, "decomposed": self.decomposed}
        return {
            "path": self.path,
            **{name: path for name, path in forms.items() if path},
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
        }


@dataclass(frozen=True)
class ExportUnit:
    """A module, the graph that it becomes, and example sizes for tracing it.

    `multiples` lists axes whose size must be a multiple of a number (image sides), and `maxima` the
    largest size of axes. `vocabulary` is the number of token ids or classes. Traced sizes are at
    least 2, because torch.export treats 0 and 1 as constants. `fed_by` is the unit whose outputs
    are inputs of this one. `runs` are inputs of the model's own runs by role, on which errors of
    Q/DQ are measured (`calibration/runs.py`). The graph is verified on the inputs `verified_on` in
    place of random ones, if there are any; of outputs [n, L, D] the tokens count that `read` [n, L]
    marks, or all.
    """

    module: torch.nn.Module
    spec: GraphSpec
    sizes: dict[str, int]
    multiples: dict[str, int]
    maxima: dict[str, int]
    vocabulary: int = 1
    fed_by: ExportUnit | None = None
    runs: Sequence[Mapping[str, torch.Tensor]] = ()
    verified_on: tuple[torch.Tensor, ...] | None = None
    read: torch.Tensor | None = None

    def example_inputs(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Return random inputs of the traced sizes, in order."""
        return tuple(self.random_input(spec, self.sizes, generator) for spec in self.spec.inputs)

    @staticmethod
    def random_input(
        spec: TensorSpec, sizes: dict[str, int], generator: torch.Generator
    ) -> torch.Tensor:
        """Return a tensor for `spec` at `sizes`: normal floats, or zeros for integers."""
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        if spec.dtype == torch.int64:
            return torch.zeros(shape, dtype=torch.int64)
        return torch.randn(shape, generator=generator, dtype=spec.dtype)
