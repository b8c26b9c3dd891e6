"""The modules of the transformer that are traced. Their branches separate after block m.

Detail Guidance needs D_c and D_m, which are equal up to block m (arXiv 2510.11538). In the forked
module, blocks 0..m run on the base rows. A hook after block m applies the op, which also gathers
the rows that each branch continues. All other values with a batch axis are gathered with the same
indices. The model's own code runs unchanged. `conditioning.py` computes what depends only on prompt
and timestep.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter
from intaglio_export.adapters.observing import observing
from intaglio_export.networks.conditioning import denoise
from intaglio_export.networks.suppress import ma_suppress


@dataclass
class _Branching:
    """The op's inputs in the current forward, and the tensors whose rows were gathered.

    `branch` and `source` are None if the rows do not change (layout dual).
    """

    mask: torch.Tensor
    ref: torch.Tensor
    branch: torch.Tensor | None
    keep: torch.Tensor
    source: torch.Tensor | None
    _memo: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def rows(self, value: torch.Tensor | None) -> torch.Tensor | None:
        """Return `value` with its rows gathered by branch, once per tensor; None stays None."""
        if value is None or self.branch is None:
            return value
        for original, rows in self._memo:
            if original is value:
                return rows
        self._memo.append((value, value.index_select(0, self.branch)))
        return self._memo[-1][1]

    def suppress(self, hidden: torch.Tensor) -> torch.Tensor:
        branch = self.branch
        if branch is None:
            branch = torch.arange(hidden.shape[0], device=hidden.device)
        return ma_suppress(hidden, self.mask, self.ref, branch, self.keep, self.source)


class _Suppressing(nn.Module):
    """The transformer with the op after block `block`, the base class of two modules."""

    def __init__(self, adapter: Adapter, block: int) -> None:
        super().__init__()
        self.transformer = adapter.transformer
        self._adapter = adapter
        self._block = block

    def _predict(self, base: Sequence[torch.Tensor], branching: _Branching) -> torch.Tensor:
        with _hooks(self._adapter, self._block, branching):
            branch = branching.branch
            if branch is None:
                return denoise(self._adapter, base)
            gather = lambda value: value.index_select(0, branch)  # noqa: E731
            return denoise(self._adapter, base, self._block, gather)


class ForkedTransformer(_Suppressing):
    """The forked layout: rows {D_0, D_c} up to block m and {D_0, D_c, D_m} after it."""

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *base, mask, ref, branch, keep, source = tensors
        return self._predict(base, _Branching(mask, ref, branch, keep, source))


class DegradedTransformer(_Suppressing):
    """The degraded graph of the dual layout, which suppresses every row by its `keep`."""

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *base, mask, ref, keep = tensors
        return self._predict(base, _Branching(mask, ref, None, keep, None))


class BaseTransformer(nn.Module):
    """The base graph of the dual layout: the transformer without the op."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.transformer = adapter.transformer
        self._adapter = adapter

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return denoise(self._adapter, tensors)


# What an observed graph outputs of every block: the stem of the role, and the observed point.
OBSERVED = {"hidden_states": "after", "gate": "gate"}


class ObservedTransformer(nn.Module):
    """One of the modules above that also returns what its blocks compute.

    It returns the prediction, the hidden states after each block [B, T, C] (after block m those
    before the op), and the gate alpha of each block [B, C]. B is the number of rows of the block.
    """

    def __init__(self, adapter: Adapter, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._adapter = adapter

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        observed: dict[tuple[str, int], torch.Tensor] = {}

        def observe(point: str, block: int, tensor: torch.Tensor) -> None:
            observed[point, block] = tensor

        # These hooks are registered first, so they run before the module's hook after block m.
        with observing(self._adapter, observe, tuple(OBSERVED.values())):
            prediction = self.module(*tensors)
        blocks = range(len(self._adapter.blocks()))
        return (prediction, *(observed[point, k] for point in OBSERVED.values() for k in blocks))


class AnchoredTransformer(nn.Module):
    """A module above with one more input, `anchor` [base_rows], the row of D_c for each row.

    torch computes nothing with it; `passes/quantize_weights.py` reads it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.module(*tensors[:-1])


@contextmanager
def _hooks(adapter: Adapter, block: int, branching: _Branching) -> Iterator[None]:
    """Register hooks that apply `branching` after block `block` during one forward."""

    def after_fork(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden, others = adapter.split(module, output)
        rows = tuple(map(branching.rows, others))
        return adapter.join(module, branching.suppress(hidden), rows)

    def before_block(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def rows(name: str, value: Any) -> Any:
            return branching.rows(value) if name in adapter.row_arguments else value

        # Each stays positional or a keyword, since other hooks may look at it there.
        names = inspect.signature(module.forward).parameters
        gathered = tuple(rows(name, value) for name, value in zip(names, args, strict=False))
        return gathered, {name: rows(name, value) for name, value in kwargs.items()}

    blocks = adapter.blocks()
    handles = [blocks[block].register_forward_hook(after_fork)]
    for later in blocks[block + 1 :]:
        handles.append(later.register_forward_pre_hook(before_block, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
