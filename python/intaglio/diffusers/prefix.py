"""Lets D_c and D_m share blocks 0..m, which compute the same for both (arXiv 2510.11538)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from intaglio.torch_reference.suppression import suppress_channels

HOOK = "intaglio_detail_guidance"


class SharedPrefix:
    """Keeps the output of block m of a D_c pass, and lets a D_m pass continue from it.

    While it is attached, every pass keeps block m's output. A pass after `resume` skips blocks 0..m
    instead, and block m returns the kept streams with the massive channels suppressed.
    """

    def __init__(self, block: int, channels: Sequence[int], ref: Sequence[float] | None) -> None:
        """Suppress `channels` of the image stream after block `block`, towards `ref` (zeros).

        Raises:
            TypeError: the block or a channel is not a whole number.
            ValueError: there are no channels, or `ref` has another number of values.
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
        self._text_tokens = 0  # of the blocks that join both streams
        self._streams: tuple[torch.Tensor | None, ...] | None = None
        self._resumed: tuple[torch.Tensor | None, ...] | None = None
        self._attached: list[nn.Module] = []
        self._thread = 0

    @property
    def in_use_here(self) -> bool:
        """Whether the current pass is of the thread that attached this; others are left alone."""
        return self._thread == get_ident()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the passes of this thread alone, too."""
        thread, self._thread = self._thread, 0
        try:
            yield
        finally:
            self._thread = thread

    def check(self, transformer: nn.Module) -> None:
        """Raise TypeError for an unknown transformer, and ValueError for one that is compiled or
        lacks the block or a channel."""
        if any(map(_is_compiled, transformer.modules())):
            raise ValueError(
                "Detail Guidance does not work with a compiled transformer: leave out"
                " torch.compile, compile() and compile_repeated_blocks()"
            )
        blocks = blocks_of(transformer)
        hidden_size: Any = transformer.inner_dim
        if not 0 <= self.block < len(blocks):
            raise ValueError(
                f"block {self.block} does not exist: the transformer has blocks 0 to"
                f" {len(blocks) - 1}"
            )
        for channel in self.channels:
            if not 0 <= channel < hidden_size:
                raise ValueError(
                    f"channel {channel} does not exist: the image stream has channels 0 to"
                    f" {hidden_size - 1}"
                )

    def attach(self, transformer: nn.Module) -> None:
        """Hook blocks 0..m of `transformer`, after `check`. Raises ValueError if it has hooks."""
        self.check(transformer)
        blocks = blocks_of(transformer)
        if HookRegistry.check_if_exists_or_initialize(blocks[0]).get_hook(HOOK) is not None:
            raise ValueError(
                "the transformer is in use by another run with Detail Guidance: run one at a time"
            )
        self._thread = get_ident()
        joined = _joined_blocks(transformer)
        for index, block in enumerate(blocks[: self.block + 1]):
            registry = HookRegistry.check_if_exists_or_initialize(block)
            last = index == self.block
            registry.register_hook(_PrefixBlock(self, last, index in joined), HOOK)
            self._attached.append(block)

    def detach(self) -> None:
        """Remove the hooks, if there are any."""
        while self._attached:
            remove_hook(self._attached.pop())

    def resume(self, ma_keep: float, rows: slice = slice(None)) -> None:
        """Let the next pass continue `rows` of the kept streams, suppressed by `ma_keep`."""
        assert self._streams is not None, "D_m continues D_c, which has not been run"
        *others, hidden = self._streams
        assert hidden is not None
        suppressed = suppress_channels(hidden[rows], self.channels, self.ref, ma_keep)
        self._resumed = (*(None if x is None else x[rows] for x in others), suppressed)

    def forget(self) -> None:
        """Release all kept tensors."""
        self._streams = self._resumed = None


class _PrefixBlock(ModelHook):  # type: ignore[misc]
    """The hook of one of blocks 0..m, which runs in a D_c pass and is skipped in a D_m pass."""

    def __init__(self, prefix: SharedPrefix, last: bool, joined: bool) -> None:
        super().__init__()
        self._prefix = prefix
        self._last = last
        self._joined = joined  # whether the block returns text and image tokens as one tensor

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self._prefix.in_use_here:
            return self.fn_ref.original_forward(*args, **kwargs)
        # Only block m's streams are used when a pass resumes; earlier blocks may return anything
        # of the same form.
        resumed = self._prefix._resumed
        if resumed is not None:
            return (
                torch.cat([x for x in resumed if x is not None], dim=1) if self._joined else resumed
            )
        output = self.fn_ref.original_forward(*args, **kwargs)
        if not self._joined and output[0] is not None:
            self._prefix._text_tokens = output[0].shape[1]
        if self._last:
            text = self._prefix._text_tokens
            streams = (output[:, :text], output[:, text:]) if self._joined else output
            self._prefix._streams = streams
        return output


# Those whose later blocks return both streams as one; FLUX.1's split it again.
_JOINED = (Flux2Transformer2DModel, ChromaTransformer2DModel)
_SUPPORTED = (SD3Transformer2DModel, FluxTransformer2DModel, *_JOINED)


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """Return all blocks in order of execution.

    They return (encoder_hidden_states, hidden_states), but for those of `_joined_blocks`.

    Raises:
        TypeError: the class of `transformer` is not supported.
    """
    if not isinstance(transformer, _SUPPORTED):
        names = ", ".join(kind.__name__ for kind in _SUPPORTED)
        raise TypeError(
            f"Detail Guidance does not support {type(transformer).__name__}: it takes {names}"
        )
    single: Any = getattr(transformer, "single_transformer_blocks", ())
    blocks: Any = transformer.transformer_blocks
    return [*blocks, *single]


def _joined_blocks(transformer: nn.Module) -> range:
    """Return the indices of the blocks that return the tokens of text and image as one tensor."""
    if not isinstance(transformer, _JOINED):
        return range(0)
    return range(len(transformer.transformer_blocks), len(blocks_of(transformer)))


def _is_compiled(module: nn.Module) -> bool:
    """Return whether torch.compile has wrapped `module` or compiled it in place."""
    return is_compiled_module(module) or module._compiled_call_impl is not None


def remove_hook(module: nn.Module, name: str = HOOK) -> None:
    """Remove the hook `name` from `module`, if it has one; submodules keep theirs."""
    HookRegistry.check_if_exists_or_initialize(module).remove_hook(name, recurse=False)


def _whole(value: Any, name: str) -> int:
    """Return `value` if it is a whole number, else raise TypeError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError(f"{name} has to be a whole number, not {value!r}")
