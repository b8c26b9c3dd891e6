"""Families whose single-stream blocks take text and image in one sequence, the text first."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter


class TextFirstAdapter(Adapter):
    """An adapter of such a family. `predict` sets `_text_length`, the tokens of the text."""

    single_block: ClassVar[type[nn.Module]]
    _text_length = 0

    def split(
        self, block: nn.Module, streams: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """Split the one sequence of a single-stream block into image and text."""
        if not isinstance(block, self.single_block):
            return super().split(block, streams)
        return streams[:, self._text_length :], (streams[:, : self._text_length],)

    def join(
        self, block: nn.Module, hidden: torch.Tensor, others: tuple[torch.Tensor | None, ...]
    ) -> Any:
        if not isinstance(block, self.single_block):
            return super().join(block, hidden, others)
        return torch.cat([*others, hidden], dim=1)  # type: ignore[list-item]
