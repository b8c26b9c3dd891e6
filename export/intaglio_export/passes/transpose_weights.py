"""Replace transposes of weights by transposed weights without a second copy in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def transposes_weight(node: ir.Node) -> bool:
    """Return whether `node` is a Transpose of an initializer that has no other use."""
    source = node.inputs[0] if node.op_type == "Transpose" and not node.domain else None
    return source is not None and source.is_initializer() and len(source.uses()) == 1


def transpose_weights(model: ir.Model) -> None:
    """Replace each transposed weight by an initializer that is transposed when it is written.

    Precondition: constant folding has not done this, because it would copy every weight.
    Postcondition: `transposes_weight` holds for no node of the graph.
    """
    graph = model.graph
    for node in [node for node in graph if transposes_weight(node)]:
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        tensor = source.const_value
        assert tensor is not None
        assert source.name is not None
        assert result.name is not None
        axes = node.attributes["perm"].as_ints()
        shape = ir.Shape(np.array(tensor.shape.numpy())[list(axes)].tolist())
        weight = ir.Value(name=result.name, shape=shape, type=ir.TensorType(tensor.dtype))
        weight.const_value = _Transposed(tensor, axes, result.name).lazily(shape)
        ir.convenience.replace_all_uses_with(result, weight)
        graph.remove(node, safe=True)
        del graph.initializers[source.name]
        graph.initializers[result.name] = weight


class _Transposed:
    """A tensor that is transposed each time that its content is read."""

    def __init__(self, tensor: ir.TensorProtocol, axes: Sequence[int], name: str) -> None:
        self.tensor, self.axes, self.name = tensor, axes, name

    def lazily(self, shape: ir.Shape) -> ir.LazyTensor:
        return ir.LazyTensor(self._make, dtype=self.tensor.dtype, shape=shape, name=self.name)

    def _make(self) -> ir.TensorProtocol:
        data = np.ascontiguousarray(self.tensor.numpy().transpose(self.axes))
        return ir.Tensor(data, dtype=self.tensor.dtype, name=self.name)
