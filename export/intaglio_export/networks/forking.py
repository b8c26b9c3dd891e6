"""The transformer with the branches parting after block m: modules that are traced and verified.

Detail Guidance needs D_c and D_m, which are one function up to block m (arXiv 2510.11538). In the
forked module blocks 0..m run on the base rows, and a hook after block m applies the op, which also
gathers the rows that each branch continues; everything else that carries a batch row is gathered
with the same indices. The model's own code runs unchanged. Prompt and timestep come as what
`conditioning.py` makes of them ahead of the loop.
"""

from __future__ import annotations

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
    """The op's inputs of the running forward, and the conditioning gathered for it.

    `gather` is None where rows stay as they are (layout dual).
    """

    mask: torch.Tensor
    ref: torch.Tensor
    branch: torch.Tensor | None
    keep: torch.Tensor
    gathered: dict[str, torch.Tensor | None] = field(default_factory=dict)
    _memo: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def rows(self, value: torch.Tensor | None) -> torch.Tensor | None:
        """`value` with its rows gathered by branch, once per tensor; None stays None."""
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
        return ma_suppress(hidden, self.mask, self.ref, branch, self.keep)


class _Suppressing(nn.Module):
    """The transformer with the op after block `block`; a base of the two suppressing modules."""

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
    """Layout forked: rows {D_0, D_c} up to block m, rows {D_0, D_c, D_m} after it."""

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *base, mask, ref, branch, keep = tensors
        return self._predict(base, _Branching(mask, ref, branch, keep))


class DegradedTransformer(_Suppressing):
    """Layout dual, the degraded graph: every row is suppressed as its `keep` says."""

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *base, mask, ref, keep = tensors
        return self._predict(base, _Branching(mask, ref, None, keep))


class BaseTransformer(nn.Module):
    """Layout dual, the base graph: the transformer without the op."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.transformer = adapter.transformer
        self._adapter = adapter

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return denoise(self._adapter, tensors)


# What an observed graph gives of every block: the role's stem, and the point where it is told.
OBSERVED = {"hidden_states": "after", "gate": "gate"}


class ObservedTransformer(nn.Module):
    """One of the above that also returns what its blocks compute.

    The prediction; z after each block [B, T, C], after block m before the op; and alpha of each
    block [B, C]. B is the rows that the block runs on.
    """

    def __init__(self, adapter: Adapter, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._adapter = adapter

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        told: dict[tuple[str, int], torch.Tensor] = {}

        def tell(point: str, block: int, tensor: torch.Tensor) -> None:
            told[point, block] = tensor

        # Outside of the module, whose hook after block m comes later then.
        with observing(self._adapter, tell, tuple(OBSERVED.values())):
            prediction = self.module(*tensors)
        blocks = range(len(self._adapter.blocks()))
        return (prediction, *(told[point, k] for point in OBSERVED.values() for k in blocks))


@contextmanager
def _hooks(adapter: Adapter, block: int, branching: _Branching) -> Iterator[None]:
    """Hooks that apply `branching` after block `block`, for the duration of one forward."""

    def after_fork(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        for name in adapter.row_arguments:
            branching.gathered[name] = branching.rows(kwargs[name])
        hidden, others = adapter.split(output)
        return adapter.join(branching.suppress(hidden), tuple(map(branching.rows, others)))

    def before_block(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | branching.gathered

    blocks = adapter.blocks()
    handles = [blocks[block].register_forward_hook(after_fork, with_kwargs=True)]
    for later in blocks[block + 1 :]:
        handles.append(later.register_forward_pre_hook(before_block, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
