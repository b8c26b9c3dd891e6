"""Name the dynamic axes of inputs and outputs as the manifest does."""

from __future__ import annotations

import onnx_ir as ir
import torch

from intaglio_export.graph_specs import GraphSpec, TensorSpec

_DTYPES = {torch.float32: ir.DataType.FLOAT, torch.int64: ir.DataType.INT64}


def name_axes(model: ir.Model, spec: GraphSpec) -> None:
    """Name the axes of inputs and outputs, and drop the exporter's names inside the graph.

    Precondition: inputs and outputs have the order and the names of `spec`.
    Postcondition: inputs and outputs have exactly the axes and types of `spec`. Values inside keep
    their types and fixed sizes, and their dynamic axes have no names.
    """
    border = [*zip(model.graph.inputs, spec.inputs, strict=True)]
    border += zip(model.graph.outputs, spec.outputs, strict=True)
    for value, tensor in border:
        _check(value, tensor)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])
    for value, tensor in border:
        value.shape = ir.Shape(tensor.axes)


def _check(value: ir.Value, tensor: TensorSpec) -> None:
    assert value.name == tensor.name, f"{value.name} is in the place of {tensor.name}"
    assert value.dtype == _DTYPES[tensor.dtype], f"{value.name} is {value.dtype}"
    assert value.shape is not None
    assert len(value.shape) == len(tensor.axes)
    for size, axis in zip(value.shape, tensor.axes, strict=True):
        if isinstance(axis, int):
            assert not isinstance(size, int) or size == axis, f"{value.name}: {size} is not {axis}"
        else:
            assert not isinstance(size, int), f"{value.name}: axis {axis} was fixed at {size}"
