"""Replace attention by ONNX Runtime's own operator, which never holds all scores at once.

The memory of the standard operator's CPU kernel grows with the square of the tokens.
`MultiHeadAttention` of com.microsoft computes the same in blocks (flash attention) if there is no
mask.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from intaglio_export.support.quiet import quiet

DOMAIN = "com.microsoft"
_SWAP = (0, 2, 1, 3)  # [B, heads, T, width] to [B, T, heads, width], and back


def multi_head_attention(model: ir.Model) -> None:
    """Replace float32 Attention without a mask by MultiHeadAttention on [B, T, heads * width].

    That operator splits the heads itself. The transposes around an Attention are removed, and a
    Concat or a norm between them and the Attention works on [B, T, heads, width].

    Precondition: values have the types and shapes that torch saw.
    Postcondition: each remaining Attention has a mask, is not float32, or has inputs with unknown
        or different heads.
    """
    for node in list(model.graph):
        if (heads := _heads(node)) is not None:
            _replace(model, node, *heads)
    with quiet():
        RemoveUnusedNodesPass()(model)


def _heads(node: ir.Node) -> tuple[int, int] | None:
    """Return the number and width of an Attention's heads, or None if it must stay."""
    if node.op_type != "Attention" or node.domain or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    if len(node.outputs) > 1 or node.outputs[0].is_graph_output():
        return None
    query, *others = (value for value in node.inputs if value is not None)
    shapes = [value.shape for value in (query, *others)]
    if len(shapes) != 3 or any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    sizes = {(shape[1], shape[3]) for shape in shapes if shape is not None}
    heads, width = next(iter(sizes))
    known = len(sizes) == 1 and isinstance(heads, int) and isinstance(width, int)
    plain = not any(node.attributes[name].value for name in set(node.attributes) - {"scale"})
    return (heads, width) if known and plain else None  # type: ignore[return-value]


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _replace(model: ir.Model, node: ir.Node, heads: int, width: int) -> None:
    tape = Tape()
    joined = _constant(model, [0, 0, heads * width])
    apart = _constant(model, [0, 0, heads, width])
    inputs = [
        tape.op("Reshape", [_tokens_first(value, tape), joined])
        for value in node.inputs[:3]
        if value is not None
    ]
    attributes: dict[str, int | float] = {"num_heads": heads}
    if "scale" in node.attributes:
        attributes["scale"] = node.attributes["scale"].as_float()
    attended = tape.op("MultiHeadAttention", inputs, attributes, domain=DOMAIN)
    attended.dtype = ir.DataType.FLOAT
    result = tape.op("Reshape", [attended, apart])
    result.dtype, result.shape = ir.DataType.FLOAT, _swapped(node.outputs[0].shape)
    for user, _ in list(node.outputs[0].uses()):
        if _swaps(user) and not user.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(user.outputs[0], result)
    if node.outputs[0].uses():
        back = tape.op("Transpose", [result], {"perm": _SWAP})
        back.dtype, back.shape = ir.DataType.FLOAT, node.outputs[0].shape
        ir.convenience.replace_all_uses_with(node.outputs[0], back)
    for number, made in enumerate(tape.nodes):
        made.name = (
            f"{node.name}_heads_{number}"  # no clash with torch, which only appends a number
        )
        made.outputs[0].name = f"{node.outputs[0].name}_heads_{number}"
    model.graph.insert_before(node, list(tape.nodes))
    model.opset_imports[DOMAIN] = 1


def _constant(model: ir.Model, shape: list[int]) -> ir.Value:
    """Return the shape for a Reshape, added once. 0 takes the size from the input."""
    name = "_".join(["shape", *map(str, shape)])
    if name not in model.graph.initializers:
        value = ir.Value(name=name, const_value=ir.tensor(shape, ir.DataType.INT64, name))
        value.dtype, value.shape = ir.DataType.INT64, ir.Shape([len(shape)])
        model.graph.initializers[name] = value
    return model.graph.initializers[name]


def _tokens_first(value: ir.Value, tape: Tape) -> ir.Value:
    """Return `value` [B, heads, T, width] as [B, T, heads, width], undoing its Transpose."""
    node = value.producer()
    if node is not None and _swaps(node):
        assert node.inputs[0] is not None
        return node.inputs[0]
    follow = [_tokens_first(x, tape) for x in _followed(node)]
    if node is not None and follow:
        kept = list(node.inputs[len(follow) :])
        attributes = {"axis": 1} if node.op_type == "Concat" else dict(node.attributes)
        result = tape.op(node.op_type, [*follow, *kept], attributes)
    else:
        result = tape.op("Transpose", [value], {"perm": _SWAP})
    result.type, result.shape = value.type, _swapped(value.shape)
    return result


def _followed(node: ir.Node | None) -> list[ir.Value]:
    """Return the inputs of `node` that can be transposed instead of its output."""
    if node is None or node.domain:
        return []
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type == "Concat" and _attribute(node, "axis", 0) in (2, -2):
        return inputs
    if node.op_type == "RMSNormalization" and _attribute(node, "axis", -1) in (3, -1):
        return inputs[:1]
    return []


def _swaps(node: ir.Node) -> bool:
    return (
        node.op_type == "Transpose"
        and not node.domain
        and tuple(node.attributes["perm"].as_ints()) == _SWAP
    )


def _swapped(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([shape[axis] for axis in _SWAP])
