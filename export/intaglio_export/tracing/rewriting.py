"""onnxscript's optimizer with its rewrite rules looked up by operator.

Its rule set tries every rule at every node, and the rule that joins Slices walks the whole graph
each time. A rule whose pattern ends in another operator than the node's can never match there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import pattern

from intaglio_export.support.patching import replaced


def optimize(model: ir.Model, should_fold: Callable[[ir.Node], bool | None]) -> None:
    """Call `onnxscript.optimizer.optimize_ir`, with `should_fold` as it is there."""
    if not hasattr(rewriter, "_DEFAULT_REWRITE_RULES"):  # an onnxscript with other internals
        optimizer.optimize_ir(model, should_fold=should_fold)
        return
    rules = pattern.RewriteRuleSet(rewriter._DEFAULT_REWRITE_RULES)
    rules.rules = [_RulesByOperator(rules.rules)]
    with replaced([(rewriter, "_DEFAULT_REWRITE_RULES", rules)]):
        optimizer.optimize_ir(model, should_fold=should_fold)


class _RulesByOperator:
    """One rule that stands for several: it tries those that can match the operator of a node."""

    def __init__(self, rules: Sequence[pattern.RewriteRule]) -> None:
        self._rules = list(rules)
        self._by_operator: dict[ir.OperatorIdentifier, list[pattern.RewriteRule]] = {}
        self._applied = self._rules[0]

    def try_rewrite(self, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        """Return the replacement of the first rule that matches, None if none does."""
        for rule in self._candidates(node.op_identifier()):
            replacement = rule.try_rewrite(model, graph, node, **options)
            if replacement is not None:
                self._applied = rule
                return replacement
        return None

    def _candidates(self, operator: ir.OperatorIdentifier) -> list[pattern.RewriteRule]:
        if operator not in self._by_operator:
            self._by_operator[operator] = [
                rule
                for rule in self._rules
                if rule._target_pattern.output_nodes[0].op_identifier() in (None, operator)
            ]
        return self._by_operator[operator]

    def __getattr__(self, name: str) -> Any:
        """Return what the rule set asks about the rule that was applied last."""
        return getattr(self._applied, name)

    def graph_pre_visitor(self) -> None:
        """Prepare all rules for a graph."""
        for rule in self._rules:
            if rule.graph_pre_visitor:
                rule.graph_pre_visitor()

    def graph_post_visitor(self) -> None:
        """Let all rules clean up after a graph."""
        for rule in self._rules:
            if rule.graph_post_visitor:
                rule.graph_post_visitor()
