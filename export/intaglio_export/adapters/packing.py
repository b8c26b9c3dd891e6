"""Packed latents and the positions of their tokens, as FLUX's pipeline has them."""

from __future__ import annotations

import torch


def pack(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """[N, C, h, w] to [N, tokens, C * patch^2]: a token is a patch, channels slowest inside it."""
    count, channels, height, width = latents.shape
    patches = latents.view(count, channels, height // patch, patch, width // patch, patch)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * patch**2)


def positions(rows: int, columns: int) -> torch.Tensor:
    """[tokens, 3] float32: (0, row, column) of each token, row by row."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).reshape(-1, 3).float()


def unpack(latents: torch.Tensor, grid: tuple[int, int], patch: int) -> torch.Tensor:
    """The inverse of `pack` for `grid` rows and columns of tokens."""
    rows, columns = grid
    patches = latents.view(len(latents), rows, columns, -1, patch, patch)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(
        len(latents), -1, rows * patch, columns * patch
    )
