"""Context managers that change what one block of a diffusers transformer returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from intaglio_export.adapters import Adapter

Change = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def replace_streams(
    adapter: Adapter, block: int, hidden: Change | None = None, text: Change | None = None
) -> Iterator[None]:
    """Apply `hidden` to the image stream after block `block`, and `text` to the text stream."""

    def hook(module: nn.Module, args: object, output: object) -> object:
        stream, others = adapter.split(module, output)
        if text is not None and others and others[0] is not None:
            changed, prompt = others[0].clone(), adapter.prompt_tokens
            changed[:, prompt] = text(others[0][:, prompt])
            others = (changed, *others[1:])
        return adapter.join(module, hidden(stream) if hidden else stream, others)

    handle = adapter.blocks()[block].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def skip_block(adapter: Adapter, block: int) -> Iterator[None]:
    """Let block `block` return its inputs."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: object) -> object:
        streams = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        hidden_states, joined = adapter.split(module, streams)
        _, others = adapter.split(module, output)
        apart = others[: len(others) - len(joined)]  # an argument of its own, if any: the text
        texts = [None if text is None else kwargs["encoder_hidden_states"] for text in apart]
        return adapter.join(module, hidden_states, (*texts, *joined))

    handle = adapter.blocks()[block].register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
