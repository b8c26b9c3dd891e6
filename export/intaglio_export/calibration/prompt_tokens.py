"""The tokens that the pipeline gives its text encoders while prompts are encoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from intaglio_export.adapters.base import Adapter
from intaglio_export.adapters.layouts import EncoderLayout


@dataclass
class PromptTokens:
    """The arguments of an encoder's calls: token ids [n, L] and masks [n, L] or None."""

    calls: list[tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=list)

    def inputs(self, layout: EncoderLayout) -> tuple[torch.Tensor, ...]:
        """Return the inputs of the encoder's graph, padded to the length of `layout`."""
        ids = torch.cat([_padded(ids, layout) for ids, _ in self.calls])
        return (ids, self._mask(layout)) if layout.masked else (ids,)

    def read(self, layout: EncoderLayout) -> torch.Tensor:
        """Return which tokens [n, L] the transformer reads: no padding, and none of the dropped."""
        mask = self._mask(layout)
        mask[:, : layout.dropped] = 0.0
        return mask

    def _mask(self, layout: EncoderLayout) -> torch.Tensor:
        masks = [torch.ones_like(ids) if mask is None else mask for ids, mask in self.calls]
        return torch.cat([_padded(mask, layout) for mask in masks]).float()


def _padded(tokens: torch.Tensor, layout: EncoderLayout) -> torch.Tensor:
    return functional.pad(tokens, (0, layout.max_length - tokens.shape[1]))


@contextmanager
def recorded_tokens(adapter: Adapter) -> Iterator[dict[str, PromptTokens]]:
    """Record what the text encoders of `adapter` are called with, by the name of the encoder."""
    recorded = {
        name: PromptTokens()
        for name in adapter.text_encoders
        if getattr(adapter.pipeline, name) is not None
    }

    def record(tokens: PromptTokens, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        tokens.calls.append((ids, kwargs.get("attention_mask")))

    with ExitStack() as hooks:
        for name, tokens in recorded.items():
            encoder = getattr(adapter.pipeline, name)
            hooks.callback(
                encoder.register_forward_pre_hook(
                    lambda _, args, kwargs, tokens=tokens: record(tokens, args, kwargs),
                    with_kwargs=True,
                ).remove
            )
        yield recorded
