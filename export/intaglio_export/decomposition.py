"""Prepare a traced program for its translation to ONNX, without tracing it again.

`torch.onnx.export` runs `run_decompositions` on every program, which interprets the whole graph
twice more, and then interprets it once again to make type promotion explicit. Nearly everything
that our networks trace to has a translation of its own, so that those runs change a few nodes only:
this module changes these nodes in place. A program that needs more goes through torch's own steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.onnx._internal.exporter import _decomp, _fx_passes, _registration
from torch.onnx._internal.fx.passes import type_promotion

from intaglio_export.adapters.patching import replaced

aten = torch.ops.aten
_ASSERTIONS = {
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten.sym_constrain_range_for_size.default,
}
_CONVERSIONS = {aten.to.dtype, aten.to.device, aten.to.dtype_layout}


@contextmanager
def prepared_in_place() -> Iterator[None]:
    """Let `torch.onnx.export` prepare programs in place, and make its registry once a process."""
    torch_decompose = _fx_passes.decompose_with_registry

    def decompose(program: ExportedProgram, registry: Any) -> ExportedProgram:
        return program if _decompose(program, registry) else torch_decompose(program, registry)

    with replaced(
        [
            (_registration.ONNXRegistry, "from_torchlib", staticmethod(_registry)),
            (_fx_passes, "decompose_with_registry", decompose),
            (_fx_passes, "insert_type_promotion_nodes", _promote),
        ]
    ):
        yield


_from_torchlib = _registration.ONNXRegistry.from_torchlib


@functools.cache
def _registry(opset_version: int) -> Any:
    return _from_torchlib(opset_version)


@functools.cache
def _translated(registry: Any) -> frozenset[Any]:
    return frozenset(_decomp.get_onnx_implemented_overloads(registry))


def _decompose(program: ExportedProgram, registry: Any) -> bool:
    graph = program.graph
    known = _translated(registry)
    for node in reversed(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.op != "call_function": continue
        if node.target in _CONVERSIONS: continue
        if isinstance(node.target, torch._ops.OpOverload) and (node.target not in known or node.target._schema.is_mutable):
            print("FALLBACK", node.target)
            return False
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            print("FALLBACK", node.target)
            return False
    for node in list(graph.nodes):
        if node.target in _CONVERSIONS:
            source = node.args[0]
            have, want = source.meta["val"].dtype, node.meta["val"].dtype
            if have == want:
                node.replace_all_uses_with(source)
                graph.erase_node(node)
            else:
                node.target = aten._to_copy.default
                node.args, node.kwargs = (source,), {"dtype": want}
    return True


class _Promotion(type_promotion._TypePromotionInterpreter):
    def run_node(self, n: Node) -> Any:
        if "val" not in n.meta:
            return super().run_node(n)
        with self._set_current_node(n):
            if rule := type_promotion.get_type_promotion_rule(n, self.type_promotion_table):
                self._maybe_promote_node(n, rule)
        return n.meta["val"]


@functools.cache
def _table() -> Any:
    return type_promotion.TypePromotionTable()


def _promote(module: GraphModule) -> None:
    for part in module.modules():
        transform = type_promotion.InsertTypePromotion(part, _table())
        transform.interpreter = _Promotion(part, _table())
        transform.run()
