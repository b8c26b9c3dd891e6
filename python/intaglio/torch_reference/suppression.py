"""Suppress massive channels in torch, with the op that the exporter also traces.

The formula itself is `intaglio_export.networks.suppress.ma_suppress`; cpp/ops/SPEC.md specifies it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from intaglio_export.networks.suppress import ma_suppress


def channel_tensors(
    channels: Sequence[int],
    ref: Sequence[float] | None,
    hidden_size: int,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the op's inputs `mask` and `ref`, both [hidden_size]. None as `ref` means zeros."""
    mask, reference = torch.zeros(2, hidden_size, device=device)
    mask[list(channels)] = 1.0
    if ref is not None:
        reference[list(channels)] = torch.tensor(ref, device=device)
    return mask, reference


def suppress_channels(
    hidden_states: torch.Tensor,
    channels: Sequence[int],
    ref: Sequence[float] | None,
    ma_keep: float,
) -> torch.Tensor:
    """Move `channels` of [N, T, C] towards `ref` on all tokens. `ma_keep` 1 leaves them alone."""
    rows, tokens, hidden_size = hidden_states.shape
    device = hidden_states.device
    mask, reference = channel_tensors(channels, ref, hidden_size, device)
    branch = torch.arange(rows, device=device)
    keep = torch.full((rows, tokens), ma_keep, device=device)
    return ma_suppress(hidden_states, mask, reference, branch, keep)
