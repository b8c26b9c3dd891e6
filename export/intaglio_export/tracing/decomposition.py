"""Prepare a traced program for its translation to ONNX without tracing it again.

`torch.onnx.export` runs `run_decompositions` on every program, which interprets the whole graph
twice, and interprets it a third time to make type promotion explicit. Almost all operators of our
networks have a translation of their own, so these runs change only a few nodes. This module changes
those nodes in place. A program with an operator that is unknown here takes torch's own way.

The names that are replaced here are internal to torch. With a version of torch that lacks them,
`trace.py` leaves the preparation to torch, which takes longer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node, map_arg
from torch.fx.experimental.proxy_tensor import make_fx
from torch.onnx._internal.exporter import _decomp, _fx_passes, _registration
from torch.onnx._internal.fx.passes import type_promotion

from intaglio_export.support.patching import replaced

_aten = torch.ops.aten
# Checks of sizes, which an ONNX graph does not make.
_ASSERTIONS = {
    _aten._assert_async.msg,
    _aten._assert_scalar.default,
    _aten._assert_tensor_metadata.default,
    _aten.sym_constrain_range_for_size.default,
}
_CONVERSIONS = {_aten.to.device, _aten.to.dtype, _aten.to.dtype_layout}
# Operators whose decomposition holds for every size that the program takes. Others might ask for a
# size while they are decomposed, and so fix it. `flatten` and `unflatten` have translations, which
# compute sizes at run time that are known here.
_DECOMPOSED = _CONVERSIONS | {
    _aten.flatten.using_ints,
    _aten.unflatten.int,
    _aten.__and__.Tensor,
    _aten.min.other,
    _aten.outer.default,
    _aten.rsub.Scalar,
}
# Operators that write into their first argument, and those that compute the same without a write.
_WRITES = {_aten.add_.Tensor: _aten.add.Tensor, _aten.div_.Tensor: _aten.div.Tensor}


@contextmanager
def prepared_in_place() -> Iterator[None]:
    """Let `torch.onnx.export` prepare programs in place, and build its registry only once."""
    by_torch = _fx_passes.decompose_with_registry

    def decompose(program: ExportedProgram, registry: Any) -> ExportedProgram:
        return program if _decompose(program, registry) else by_torch(program, registry)

    with replaced(
        [
            (_registration.ONNXRegistry, "from_torchlib", staticmethod(_registry)),
            (_fx_passes, "decompose_with_registry", decompose),
            (_fx_passes, "insert_type_promotion_nodes", _promote_types),
        ]
    ):
        yield


_from_torchlib = _registration.ONNXRegistry.from_torchlib


@functools.cache
def _registry(**options: Any) -> Any:
    return _from_torchlib(**options)


@functools.cache
def _decompositions(registry: Any) -> Any:
    return _decomp.create_onnx_friendly_decomposition_table(set(_translated(registry)))


@functools.cache
def _translated(registry: Any) -> frozenset[Any]:
    """Return the operators that have a translation."""
    return frozenset(_decomp.get_onnx_implemented_overloads(registry))


def _decompose(program: ExportedProgram, registry: Any) -> bool:
    """Replace the operators that have no translation. Return False if that is not possible.

    The program then lacks its assertions only, and torch can decompose it.
    """
    graph = program.graph
    for node in reversed(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    operators = [n for n in graph.nodes if isinstance(n.target, torch._ops.OperatorBase)]
    replaceable = [
        node
        for node in operators
        if node.target in _DECOMPOSED or not _is_translated(node.target, registry)
    ]
    if not all(map(_is_replaceable, replaceable)):
        return False
    for node in replaceable:
        with graph.inserting_before(node):
            node.replace_all_uses_with(_replacement(node, registry))
        graph.erase_node(node)
    graph.eliminate_dead_code()
    return True


def _is_translated(target: Any, registry: Any) -> bool:
    # Translations know nothing of writes into tensors.
    return target in _translated(registry) and not target._schema.is_mutable


def _is_replaceable(node: Node) -> bool:
    if any(user.op == "output" for user in node.users):
        return False  # the signature of the program names its outputs
    if node.target in _WRITES or node.target is _aten.detach_.default:
        written = node.args[0]
        return isinstance(written, Node) and _is_only_user(node, written)
    return node.target in _DECOMPOSED


def _replacement(node: Node, registry: Any) -> Node:
    """Add the nodes that compute the same as `node`, and return the last of them."""
    source = node.args[0]
    assert isinstance(source, Node)
    keeps_values = node.target is _aten.detach_.default or node.target in _CONVERSIONS
    if keeps_values and source.meta["val"].dtype == node.meta["val"].dtype:
        return source
    if node.target in _WRITES:
        new = node.graph.call_function(_WRITES[node.target], node.args, node.kwargs)
        new.meta = dict(node.meta)
        return new
    return _expand(node, registry)


def _is_only_user(node: Node, written: Node) -> bool:
    """Return whether nothing but `node` sees the tensor that it writes to, which is no view."""
    if len(written.users) > 1 or not isinstance(written.target, torch._ops.OpOverload):
        return False
    return all(returned.alias_info is None for returned in written.target._schema.returns)


def _expand(node: Node, registry: Any) -> Node:
    """Decompose one operator as torch would."""
    inputs = list(node.all_input_nodes)

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args, kwargs = map_arg((node.args, node.kwargs), given.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    values = [source.meta["val"] for source in inputs]
    parts = make_fx(call, decomposition_table=_decompositions(registry))(*values).graph
    copies: dict[Node, Node] = dict(zip(parts.find_nodes(op="placeholder"), inputs, strict=True))
    for part in parts.nodes:
        if part.op == "call_function":
            known = _node_of_size(node, part.meta["val"])
            copies[part] = known or node.graph.node_copy(part, copies.__getitem__)
            if known is None:
                copies[part].meta = dict(node.meta) | {"val": part.meta["val"]}
    return copies[parts.output_node().args[0]]  # type: ignore[index]


def _node_of_size(node: Node, value: Any) -> Node | None:
    """Return a node before `node` that holds the same symbolic size, if `value` is one."""
    if not isinstance(value, torch.SymInt):
        return None
    for other in node.graph.nodes:
        if other is node:
            return None
        size = other.meta.get("val")
        if isinstance(size, torch.SymInt) and size.node.expr == value.node.expr:
            found: Node = other
            return found
    return None


class _PromotionOfChangedNodes(type_promotion._TypePromotionInterpreter):
    """Torch's pass that makes type promotion explicit, which computes only what it changes."""

    def run_node(self, n: Node) -> Any:
        if "val" not in n.meta:
            return super().run_node(n)
        with self._set_current_node(n):
            if rule := type_promotion.get_type_promotion_rule(n, self.type_promotion_table):
                self._maybe_promote_node(n, rule)
        return n.meta["val"]


@functools.cache
def _promotion_rules() -> type_promotion.TypePromotionTable:
    return type_promotion.TypePromotionTable()


def _promote_types(module: GraphModule) -> None:
    for part in module.modules():
        assert isinstance(part, GraphModule)
        promotion = type_promotion.InsertTypePromotion(part, _promotion_rules())
        promotion.interpreter = _PromotionOfChangedNodes(part, _promotion_rules())
        promotion.run()
