"""Prepare a traced program for its translation to ONNX without tracing it again.

`torch.onnx.export` runs `run_decompositions` on every program, which interprets the whole graph
twice, and interprets it a third time to make type promotion explicit. Almost all operators of our
networks have a translation of their own, so these runs change only a few nodes. This module changes
those nodes in place. A program with an operator that is unknown here takes torch's own way.

The names that are replaced here are internal to torch; constraints.txt pins the version.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
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
def _registry(opset_version: int) -> Any:
    return _from_torchlib(opset_version)


@functools.cache
def _decompositions(registry: Any) -> Any:
    return _decomp.create_onnx_friendly_decomposition_table(set(_translated(registry)))


@functools.cache
def _translated(registry: Any) -> frozenset[Any]:
    """Return the operators that have a translation."""
    return frozenset(_decomp.get_onnx_implemented_overloads(registry))


def _decompose(program: ExportedProgram, registry: Any) -> bool:
    """Replace the operators that have no translation. Return whether that was possible.

    If it was not, the program still computes the same, and torch can decompose it.
    """
    graph = program.graph
    for node in reversed(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return False
        if isinstance(node.target, torch._ops.OpOverload) and not _is_translated(node, registry):
            with graph.inserting_before(node):
                if (result := _replacement(node, registry)) is None:
                    return False
            _replace(node, result)
    return True


def _is_translated(node: Node, registry: Any) -> bool:
    # Translations know nothing of writes into tensors.
    return node.target in _translated(registry) and not node.target._schema.is_mutable  # type: ignore[union-attr]


def _replacement(node: Node, registry: Any) -> Node | Sequence[Node] | None:
    """Add nodes that compute the same as `node`, and return those of its results."""
    source = node.args[0]
    if node.target in _CONVERSIONS and isinstance(source, Node):
        dtype = node.meta["val"].dtype
        if source.meta["val"].dtype == dtype:
            return source
    if node.target._schema.is_mutable:  # type: ignore[union-attr]
        if not isinstance(source, Node) or not _is_only_user(node, source):
            return None
        if node.target is _aten.detach_.default:
            return source
        packet = getattr(_aten, node.target._opname.removesuffix("_"))  # type: ignore[union-attr]
        target = getattr(packet, node.target._overloadname)  # type: ignore[union-attr]
        if target in _translated(registry):
            return _copy(node.graph.call_function(target, node.args, node.kwargs), node)
    return _expand(node, registry)


def _is_only_user(node: Node, written: Node) -> bool:
    """Return whether nothing but `node` sees the tensor that it writes to, which is no view."""
    if len(written.users) > 1 or not isinstance(written.target, torch._ops.OpOverload):
        return False
    return all(returned.alias_info is None for returned in written.target._schema.returns)


def _expand(node: Node, registry: Any) -> Node | Sequence[Node] | None:
    """Decompose one operator as torch would, and add the nodes that it consists of."""
    inputs = list(node.all_input_nodes)

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args, kwargs = map_arg((node.args, node.kwargs), given.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    values = [source.meta["val"] for source in inputs]
    parts = make_fx(call, decomposition_table=_decompositions(registry))(*values).graph.nodes
    placeholders = [part for part in parts if part.op == "placeholder"]
    copies = dict(zip(placeholders, inputs, strict=True))
    for part in parts:
        if part.op == "output":
            results: Node | Sequence[Node] = map_arg(part.args[0], copies.__getitem__)
            return results
        if part.op == "placeholder":
            continue
        is_operator = isinstance(part.target, torch._ops.OpOverload)
        if part.op != "call_function" or (is_operator and not _is_translated(part, registry)):
            return None
        copies[part] = _copy(node.graph.node_copy(part, copies.__getitem__), node)
        copies[part].meta["val"] = part.meta["val"]
    return None


def _copy(new: Node, node: Node) -> Node:
    """Give `new` what is known of `node`, which it stands for."""
    new.meta = dict(node.meta)
    return new


def _replace(node: Node, result: Node | Sequence[Node]) -> None:
    if isinstance(result, Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):  # each takes one element out of the list
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
            node.graph.erase_node(user)
    node.graph.erase_node(node)


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
