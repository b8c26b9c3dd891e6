"""Blocks 0..m run once for D_c and D_m, which are one function up to there (arXiv 2510.11538)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from intaglio_export.networks.suppress import ma_suppress

HOOK = "intaglio_detail_guidance"


class SharedPrefix:
    """Keeps what block m made in a D_c pass, and lets a D_m pass go on from there.

    While attached, every pass keeps block m's output, except one after `resume`: there blocks 0..m
    are not run, and block m gives the kept streams with the massive channels suppressed.
    """

    def __init__(self, block: int, channels: Sequence[int], ref: Sequence[float] | None) -> None:
        """Suppress `channels` of the image stream after block `block`, towards `ref` (zeros).

        Raises:
            TypeError: the block or a channel is no whole number.
            ValueError: no channels, or another number of values in `ref`.
        """
        self.block = _whole(block, "block")
        self.channels = [_whole(channel, "a channel") for channel in channels]
        if not self.channels:
            raise ValueError("channels is empty: name at least one massive channel")
        self.ref = [0.0] * len(self.channels) if ref is None else [float(value) for value in ref]
        if len(self.ref) != len(self.channels):
            raise ValueError(
                f"ref has {len(self.ref)} values for {len(self.channels)} channels: give one each"
            )
        self._streams: tuple[torch.Tensor | None, ...] | None = None
        self._resumed: tuple[torch.Tensor | None, ...] | None = None
        self._attached: list[nn.Module] = []

    def check(self, transformer: nn.Module) -> None:
        """Raises TypeError for an unknown transformer, ValueError where it has no such place."""
        blocks = blocks_of(transformer)
        width: Any = transformer.inner_dim
        if not 0 <= self.block < len(blocks):
            raise ValueError(
                f"block {self.block} is not there: the transformer's blocks are 0 to"
                f" {len(blocks) - 1}"
            )
        for channel in self.channels:
            if not 0 <= channel < width:
                raise ValueError(
                    f"channel {channel} is not there: the image stream's channels are 0 to"
                    f" {width - 1}"
                )

    def attach(self, transformer: nn.Module) -> None:
        """Hook blocks 0..m of `transformer`; raises what `check` raises."""
        self.check(transformer)
        for index, block in enumerate(blocks_of(transformer)[: self.block + 1]):
            registry = HookRegistry.check_if_exists_or_initialize(block)
            registry.register_hook(_PrefixBlock(self, last=index == self.block), HOOK)
            self._attached.append(block)

    def detach(self) -> None:
        """Take the hooks off again; does nothing where there are none."""
        while self._attached:
            remove_hook(self._attached.pop())

    def resume(self, keep: float, rows: slice = slice(None)) -> None:
        """Let the next pass continue `rows` of what was kept, massive channels times `keep`."""
        assert self._streams is not None, "D_m has nothing to go on from: D_c has not been run"
        *others, hidden = self._streams
        assert hidden is not None
        hidden = hidden[rows]
        mask, ref = torch.zeros(2, hidden.shape[-1], device=hidden.device)
        mask[self.channels] = 1.0
        ref[self.channels] = torch.tensor(self.ref, device=hidden.device)
        branch = torch.arange(len(hidden), device=hidden.device)
        kept = torch.full(hidden.shape[:2], keep, device=hidden.device)
        suppressed = ma_suppress(hidden, mask, ref, branch, kept)
        self._resumed = (*(None if x is None else x[rows] for x in others), suppressed)

    def forget(self) -> None:
        """Drop all tensors."""
        self._streams = self._resumed = None


class _PrefixBlock(ModelHook):  # type: ignore[misc]
    """One of blocks 0..m: run in a D_c pass, skipped in a D_m pass."""

    def __init__(self, prefix: SharedPrefix, last: bool) -> None:
        super().__init__()
        self._prefix = prefix
        self._last = last

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Only block m's streams are used of a pass that resumes; the others need their form only.
        if self._prefix._resumed is not None:
            return self._prefix._resumed
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self._last:
            self._prefix._streams = output
        return output


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """All blocks in order of execution; they return (encoder_hidden_states, hidden_states).

    Raises:
        TypeError: nothing is known about the class of `transformer`.
    """
    if isinstance(transformer, SD3Transformer2DModel):
        return list(transformer.transformer_blocks)
    if isinstance(transformer, FluxTransformer2DModel):
        return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    raise TypeError(
        f"Detail Guidance does not know the blocks of {type(transformer).__name__}:"
        " it takes SD3Transformer2DModel and FluxTransformer2DModel, not compiled"
    )


def remove_hook(module: nn.Module, name: str = HOOK) -> None:
    """Remove our hook from `module` alone, if it is there."""
    HookRegistry.check_if_exists_or_initialize(module).remove_hook(name, recurse=False)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError(f"{name} has to be a whole number, not {value!r}")
