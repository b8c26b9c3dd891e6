"""Replace casts of low-precision weights to float32 by float32 weights, made when they are read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def widen_weights(model: ir.Model) -> None:
    """Replace each weight that is cast to float32 by an initializer that is cast when it is read.

    Postcondition: no Cast to float32 reads an initializer.
    """
    graph = model.graph
    for node in [node for node in graph if _widens_weight(node)]:
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        tensor = source.const_value
        assert tensor is not None
        assert result.name is not None
        shape = ir.Shape(tensor.shape.numpy())
        weight = ir.Value(name=result.name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        weight.const_value = ir.LazyTensor(
            _Widened(tensor, result.name),
            dtype=ir.DataType.FLOAT,
            shape=shape,
            name=result.name,
        )
        ir.convenience.replace_all_uses_with(result, weight)
        graph.remove(node, safe=True)
        if not source.uses():
            del graph.initializers[source.name or ""]
        graph.initializers[result.name] = weight


def _widens_weight(node: ir.Node) -> bool:
    source = node.inputs[0] if node.op_type == "Cast" and not node.domain else None
    return (
        source is not None
        and source.is_initializer()
        and node.attributes["to"].as_int() == ir.DataType.FLOAT
    )


class _Widened:
    """A function that casts a tensor to float32."""

    def __init__(self, tensor: ir.TensorProtocol, name: str) -> None:
        self._tensor, self._name = tensor, name

    def __call__(self) -> ir.TensorProtocol:
        return ir.tensor(self._tensor.numpy().astype(np.float32), name=self._name)
