"""Observe what a transformer's blocks compute while it runs, through hooks at these points:

before     [B, T, C]  image stream z[k] that enters block k
modulated  [B, T, C]  its AdaLN output, which attention reads
gate       [B, C]     alpha, AdaLN's residual gate of attention
after      [B, T, C]  image stream z[k + 1] that leaves the block
text       [B, S, C]  text stream that leaves the block, where it has one
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter

POINTS = ("before", "modulated", "gate", "after", "text")
# A callback that gets the point, the block and the tensor. The tensor belongs to the model, so
# copy it to keep it.
Observer = Callable[[str, int, torch.Tensor], None]


@contextmanager
def observing(
    adapter: Adapter, observer: Observer, points: Collection[str] = POINTS
) -> Iterator[None]:
    """Call `observer` for each of `points` in each block of every forward inside.

    The hooks of this context run first, so they see what a block computed before hooks that are
    added inside change it.
    """
    handles = [
        handle
        for k, block in enumerate(adapter.blocks())
        for handle in _hooks(adapter, block, k, observer, points)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(
    adapter: Adapter, block: nn.Module, k: int, observer: Observer, points: Collection[str]
) -> Iterator[Any]:
    if unknown := set(points) - set(POINTS):
        raise ValueError(f"There is no point {sorted(unknown)[0]}: points are {', '.join(POINTS)}.")
    tokens = 0

    def entering(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal tokens
        hidden_states, _ = adapter.split(block, _hidden_states(args, kwargs))
        tokens = hidden_states.shape[1]
        if "before" in points:
            observer("before", k, hidden_states)

    def attending(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        # FLUX.1's single-stream blocks also attend to the text's tokens, which come first.
        hidden_states, _ = adapter.split(block, _hidden_states(args, kwargs))
        observer("modulated", k, hidden_states[:, -tokens:])

    def gating(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        named = signature(module.forward).bind(*args, **kwargs).arguments
        observer("gate", k, adapter.gate(block, named | kwargs, output))

    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        hidden_states, others = adapter.split(block, output)
        if "after" in points:
            observer("after", k, hidden_states)
        if "text" in points and others and others[0] is not None:
            observer("text", k, others[0][:, adapter.prompt_tokens])

    if {"before", "modulated"} & set(points):
        yield block.register_forward_pre_hook(entering, with_kwargs=True)
    if "modulated" in points:
        yield adapter.attention(block).register_forward_pre_hook(attending, with_kwargs=True)
    if "gate" in points:
        yield adapter.gating(block).register_forward_hook(gating, with_kwargs=True)
    if {"after", "text"} & set(points):
        yield block.register_forward_hook(leaving)


def _hidden_states(args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the image stream of a call, which is a named or the first argument."""
    hidden_states: torch.Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return hidden_states
