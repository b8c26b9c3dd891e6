"""What a step costs on any machine, counted from its graphs; needs only onnx."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import inliner, numpy_helper, shape_inference
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor
from onnx.reference import ReferenceEvaluator

Shape = tuple[int, ...]
_SMALL = 64  # elements of a tensor that may hold a shape
# Their output is their input's memory.
_VIEWS = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}


@dataclass(frozen=True)
class Count:
    """Of one run of a graph.

    `flops` of matrix products, convolutions and attention, two a multiply-add; `weights` bytes by
    where they lie; `activations` the most bytes of other tensors needed at once, in the graph's
    order. `moving_` is the part that depends on the latent: what could be computed before the loop
    is left out.
    """

    flops: int = 0
    moving_flops: int = 0
    weights: dict[Any, int] = field(default_factory=dict)
    moving_weights: dict[Any, int] = field(default_factory=dict)
    activations: int = 0

    def __add__(self, other: Count) -> Count:
        """Of one graph after the other; what they share counts once."""
        return Count(
            self.flops + other.flops,
            self.moving_flops + other.moving_flops,
            self.weights | other.weights,
            self.moving_weights | other.moving_weights,
            max(self.activations, other.activations),
        )

    def summary(self) -> dict[str, int]:
        """Numbers for a table."""
        return {
            "flops": self.flops,
            "moving_flops": self.moving_flops,
            "weights_bytes": sum(self.weights.values()),
            "moving_weights_bytes": sum(self.moving_weights.values()),
            "activation_bytes": self.activations,
        }


def count_step(
    bundle: Path, *, images: int, cfg: bool, dg: bool, side: int, text_tokens: int
) -> Count:
    """Of one evaluation of a bundle's branches, images of `side` x `side` tokens."""
    manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
    transformer = manifest["transformer"]
    base, rows = images * (2 if cfg else 1), images * ((2 if cfg else 1) + (1 if dg else 0))
    cells = side * transformer["patch_size"]
    sizes = {
        "latent_height": cells,
        "latent_width": cells,
        "tokens": side * side,
        "text_length": text_tokens,
    }
    graphs = {name: bundle / graph["path"] for name, graph in transformer["graphs"].items()}
    if "forked" in graphs:
        return count_graph(graphs["forked"], sizes | {"base_rows": base, "rows": rows})
    count = count_graph(graphs["base"], sizes | {"rows": base})
    return count + count_graph(graphs["degraded"], sizes | {"rows": images}) if dg else count


def count_graph(path: Path, sizes: Mapping[str, int]) -> Count:
    """Of the graph at `path`, its inputs' named axes as in `sizes`.

    Raises:
        KeyError: an axis has no size.
        ValueError: the shape of a product's input cannot be told.
    """
    graph, tensors = shapes(path, sizes)
    weights = {t.name: t for t in graph.initializer}
    moving = {"latent"}
    flops = moving_flops = 0
    used: set[str] = set()
    for node in graph.node:
        cost = _flops(node, tensors)
        flops += cost
        if moving.intersection(node.input):
            moving.update(node.output)
            moving_flops += cost
            used.update(name for name in node.input if name in weights)
    return Count(
        flops,
        moving_flops,
        dict(_placed(path, weights.values())),
        dict(_placed(path, (weights[name] for name in used))),
        _largest(graph, tensors),
    )


def shapes(
    path: Path, sizes: Mapping[str, int]
) -> tuple[onnx.GraphProto, dict[str, tuple[Shape, int]]]:
    """The graph with functions inlined; each tensor's shape and bytes, as far as can be told.

    onnx's inference is repeated while computing what it does not: sizes made of sizes.
    """
    model = inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    graph = model.graph
    for value in graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = sizes[axis.dim_param]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for tensor in graph.initializer:
        small = math.prod(tensor.dims) <= _SMALL
        if small and tensor.data_location == onnx.TensorProto.EXTERNAL:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    while True:
        del graph.value_info[:]
        inferred = shape_inference.infer_shapes(model, data_prop=True)
        known = _known(inferred.graph)
        if not _fold(graph, known):
            return inferred.graph, known


def _known(graph: onnx.GraphProto) -> dict[str, tuple[Shape, int]]:
    known = {}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        kind = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.HasField("shape") and -1 not in dims and kind.elem_type:
            size = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
            known[value.name] = (tuple(dims), math.prod(dims) * size)
    for tensor in graph.initializer:
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        known[tensor.name] = (tuple(tensor.dims), math.prod(tensor.dims) * size)
    return known


def _fold(graph: onnx.GraphProto, known: Mapping[str, tuple[Shape, int]]) -> bool:
    """Compute small whole numbers that depend on sizes only; whether there were any."""
    constants = {
        t.name: numpy_helper.to_array(t)
        for t in graph.initializer
        if math.prod(t.dims) <= _SMALL and t.data_location != onnx.TensorProto.EXTERNAL
    }
    kept, before = [], len(graph.initializer)
    for node in graph.node:
        names = [name for name in node.input if name]
        if node.op_type == "Shape" and names[0] in known:
            shape = known[names[0]][0]
            attributes = {a.name: a.i for a in node.attribute}
            shape = shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
            results = [np.array(shape, np.int64)]
        elif names and all(name in constants for name in names) and len(node.output) == 1:
            results = _evaluate(node, {name: constants[name] for name in names})
        else:
            kept.append(node)
            continue
        for name, result in zip(node.output, results, strict=True):
            constants[name] = result
            graph.initializer.append(numpy_helper.from_array(result, name))
    del graph.node[:]
    graph.node.extend(kept)
    return len(graph.initializer) > before


def _evaluate(node: onnx.NodeProto, inputs: Mapping[str, Any]) -> list[Any]:
    values = [onnx.helper.make_tensor_value_info(n, 0, None) for n in inputs]
    for value, array in zip(values, inputs.values(), strict=True):
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    outputs = [onnx.helper.make_tensor_value_info(node.output[0], 0, None)]
    graph = onnx.helper.make_graph([node], "one", values, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    return [np.asarray(r) for r in ReferenceEvaluator(model).run(None, dict(inputs))]


def _flops(node: onnx.NodeProto, tensors: Mapping[str, tuple[Shape, int]]) -> int:
    count = _FLOPS.get(node.op_type)
    if count is None:
        return 0
    names = [name for name in [*node.input[:3], node.output[0]] if name]
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"{node.op_type} {node.name}: the shape of {missing[0]} cannot be told")
    given = [tensors[name][0] for name in node.input if name in tensors]
    return 2 * count(node, given, tensors[node.output[0]][0])


def _matmul(node: onnx.NodeProto, given: list[Shape], output: Shape) -> int:
    return math.prod(output) * given[0][-1]


def _gemm(node: onnx.NodeProto, given: list[Shape], output: Shape) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output) * given[0][0 if transposed else 1]


def _conv(node: onnx.NodeProto, given: list[Shape], output: Shape) -> int:
    return math.prod(output) * math.prod(given[1][1:])


def _attention(node: onnx.NodeProto, given: list[Shape], output: Shape) -> int:
    """Scores and weighted values; [B, heads, T, D] or [B, T, heads * D]."""
    query, key, value = given[:3]
    rows = math.prod(query[:-2])  # batch, and heads where they are an axis
    return rows * query[-2] * key[-2] * (query[-1] + value[-1])


_FLOPS = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
}


def _placed(path: Path, weights: Iterable[onnx.TensorProto]) -> Iterable[tuple[Any, int]]:
    """Bytes by file and offset; those inside of the graph are small and left out."""
    for tensor in weights:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            yield (str(path.parent / info.location), int(info.offset or 0)), int(info.length)


def _largest(graph: onnx.GraphProto, tensors: Mapping[str, tuple[Shape, int]]) -> int:
    """The most bytes of tensors alive at once, each from where it is made to its last use."""
    memory: dict[str, str] = {}  # whose memory a tensor is in
    last: dict[str, int] = {}
    for place, node in enumerate(graph.node):
        for name in node.output:
            view = node.op_type in _VIEWS
            memory[name] = memory.get(node.input[0], node.input[0]) if view else name
        for name in (*node.input, *node.output):
            last[memory.get(name, name)] = place
    for value in graph.output:
        last[memory.get(value.name, value.name)] = len(graph.node)
    weights = {tensor.name for tensor in graph.initializer}
    alive = {value.name: tensors[value.name][1] for value in graph.input}
    largest = 0
    for place, node in enumerate(graph.node):
        for name in node.output:
            if name in tensors and memory[name] == name and name not in weights:
                alive[name] = tensors[name][1]
        largest = max(largest, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > place}
    return largest
