"""Packed latents and the positions of their tokens, as in FLUX's pipeline."""

from __future__ import annotations

import torch


def pack(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """Pack [N, C, h, w] to [N, tokens, C * patch^2]; channels are the slowest axis in a token."""
    count, channels, height, width = latents.shape
    patches = latents.view(count, channels, height // patch, patch, width // patch, patch)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * patch**2)


def positions(rows: int, columns: int) -> torch.Tensor:
    """Return (0, row, column) of each token, row by row, as [tokens, 3] float32."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).reshape(-1, 3).float()


def unpack(latents: torch.Tensor, grid: tuple[int, int], patch: int) -> torch.Tensor:
    """Undo `pack` for `grid`, which holds the rows and columns of tokens."""
    rows, columns = grid
    patches = latents.view(len(latents), rows, columns, -1, patch, patch)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(
        len(latents), -1, rows * patch, columns * patch
    )
