"""Estimate the activation memory of a graph without building it.

Shapes are followed through the graph at a profile's largest sizes. The estimate is 8 MiB plus the
largest number of bytes that are in use at the same time when nodes run in order. A builder fuses
nodes and makes copies, so engines of small models need 0.8 to 1.3 times the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from intaglio_export.engines.profiles import Shape
from intaglio_export.passes.tensorrt_fp4 import BLOCK, DOMAIN

_WORKSPACE = 8 << 20  # measured: every engine needs this in addition
_SMALL = 64  # values of tensors up to this size are followed: shapes, but not weights


def activation_estimate(model: onnx.ModelProto, largest: Mapping[str, Shape]) -> int:
    """Return the bytes that are in use at the same time for inputs of the shapes `largest`."""
    graph = inliner.inline_local_functions(model).graph
    sizes = _Shapes(model, graph, largest).sizes()
    last_use = {name: i for i, node in enumerate(graph.node) for name in node.input}
    weights = {tensor.name for tensor in graph.initializer}
    alive = peak = 0
    for i, node in enumerate(graph.node):
        made = [name for name in node.output if name]
        alive += sum(sizes[name] for name in made)
        peak = max(peak, alive + _scores(node, sizes))
        used = {name for name in node.input if name and last_use[name] == i and name in sizes}
        unused = {name for name in made if name not in last_use}
        alive -= sum(sizes[name] for name in (used - weights) | unused)
    return peak + _WORKSPACE


def _scores(node: onnx.NodeProto, sizes: Mapping[str, int]) -> int:
    return sizes.get(f"{node.output[0]} scores", 0)


class _Shapes:
    """Types of all tensors, and the values of those that hold shapes, one node after the other."""

    def __init__(
        self, model: onnx.ModelProto, graph: onnx.GraphProto, largest: Mapping[str, Shape]
    ) -> None:
        self._graph = graph
        self._opsets = list(model.opset_import)
        self._versions = {opset.domain: opset.version for opset in self._opsets}
        self._types: dict[str, onnx.TypeProto] = {}
        self._values: dict[str, np.ndarray[Any, Any]] = {}
        for value in graph.input:
            dtype = value.type.tensor_type.elem_type
            self._types[value.name] = helper.make_tensor_type_proto(dtype, largest[value.name])
        for tensor in graph.initializer:
            self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            if math.prod(tensor.dims) <= _SMALL and not tensor.external_data:
                self._values[tensor.name] = numpy_helper.to_array(tensor)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of all tensors except the graph's inputs and weights."""
        sizes = {}
        for node in self._graph.node:
            self._follow(node)
            for name in node.output:
                if name:
                    sizes[name] = self._bytes(name)
            if node.op_type == "Attention":
                sizes[f"{node.output[0]} scores"] = self._score_bytes(node)
        return sizes

    def _shape(self, name: str) -> Sequence[int]:
        return [d.dim_value for d in self._types[name].tensor_type.shape.dim]

    def _bytes(self, name: str) -> int:
        if name not in self._types:
            return 0
        dtype = helper.tensor_dtype_to_np_dtype(self._types[name].tensor_type.elem_type)
        return int(math.prod(self._shape(name)) * dtype.itemsize)

    def _follow(self, node: onnx.NodeProto) -> None:
        names = [name for name in node.input if name]
        if node.op_type == "Shape":
            start, end = (_attribute(node, key) for key in ("start", "end"))
            values = [np.array(self._shape(names[0])[start:end], np.int64)]
        elif names and all(name in self._values for name in names):
            values = ReferenceEvaluator(node).run(None, {n: self._values[n] for n in names})
        elif node.op_type == "Constant":
            values = ReferenceEvaluator(node).run(None, {})
        else:
            self._infer(node, names)
            return
        for name, value in zip(node.output, values, strict=True):
            array = np.asarray(value)
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
            self._types[name] = helper.make_tensor_type_proto(dtype, array.shape)
            if array.size <= _SMALL:
                self._values[name] = array

    def _infer(self, node: onnx.NodeProto, names: Sequence[str]) -> None:
        if node.domain == DOMAIN:  # TensorRT's, with numbers and the scales of their blocks
            shape = self._shape(names[0])
            blocks = [*shape[:-1], shape[-1] // BLOCK]
            types = ((onnx.TensorProto.FLOAT4E2M1, shape), (onnx.TensorProto.FLOAT8E4M3FN, blocks))
            for name, (dtype, sizes) in zip(node.output, types, strict=True):
                self._types[name] = helper.make_tensor_type_proto(dtype, sizes)
            return
        schema = onnx.defs.get_schema(node.op_type, self._versions[node.domain], node.domain)
        found = shape_inference.infer_node_outputs(
            schema,
            node,
            {name: self._types[name] for name in names},
            {n: numpy_helper.from_array(self._values[n]) for n in names if n in self._values},
            opset_imports=self._opsets,
        )
        for name, found_type in found.items():
            # Normalizations are functions in ONNX and not followed: their shape is the input's.
            known = found_type.tensor_type.HasField("shape")
            self._types[name] = found_type if known else self._types[names[0]]

    def _score_bytes(self, node: onnx.NodeProto) -> int:
        """Return the bytes of unfused attention: the scores and their softmax."""
        query, key = (self._shape(name) for name in node.input[:2])
        heads = query[1] if len(query) == 4 else _attribute(node, "q_num_heads")
        itemsize = self._bytes(node.output[0]) // max(1, math.prod(self._shape(node.output[0])))
        return 2 * query[0] * (heads or 1) * query[-2] * key[-2] * itemsize


def _attribute(node: onnx.NodeProto, name: str) -> int | None:
    return next((a.i for a in node.attribute if a.name == name), None)
