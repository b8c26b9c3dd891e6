"""Writes golden tensors of the op MASuppress to tests/data/ma_suppress/*.npy.

Run: python tests/data/make_ma_suppress_golden.py

Every implementation (torch, the ONNX function, the C++ kernel) must give `output` bit for bit. The
inputs hold what is easily got wrong: NaN, infinity and -0.0 in places that the op leaves alone, an
infinite `ref` on a channel that is not masked, rows continued twice, keep at 0, 1, between and
above 1, and tokens of the same and of another row as `source`. The first FIRST_ROWS rows have no
source, so they are also what a graph of version 1 gives.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = Path(__file__).resolve().parent / "ma_suppress"
ROWS, TOKENS, CHANNELS = 3, 5, 8
MASKED = (1, 4, 6)
FIRST_ROWS = 7


def make_inputs() -> dict[str, torch.Tensor]:
    """hidden [3, 5, 8], mask [8], ref [8], branch [11], keep and source [11, 5]."""
    generator = torch.Generator().manual_seed(20251)
    hidden = torch.randn(ROWS, TOKENS, CHANNELS, generator=generator) * 3
    hidden[..., MASKED] *= 50
    hidden[0, 0, 0] = float("nan")
    hidden[0, 1, 2] = float("inf")
    hidden[1, 2, 3] = float("-inf")
    hidden[1, 3, 5] = -0.0
    hidden[2, 4, 4] = float("nan")  # masked, but every row that continues it keeps token 4
    hidden[2, 4, 6] = float("inf")
    mask = torch.zeros(CHANNELS)
    mask[list(MASKED)] = 1
    ref = torch.randn(CHANNELS, generator=generator)
    ref[1] = 0.0
    ref[7] = float("inf")
    branch = torch.tensor([0, 1, 2, 0, 1, 1, 2])
    keep = torch.rand(len(branch), TOKENS, generator=generator)
    keep[:3] = 1.0
    keep[3] = 0.0
    keep[4] = torch.tensor([0.0, 1.0, 0.3, 1.0, 0.7])
    keep[6, 4] = 1.0
    branch = torch.cat([branch, torch.tensor([0, 1, 1, 2])])
    keep = torch.cat([keep, torch.rand(len(branch) - FIRST_ROWS, TOKENS, generator=generator)])
    source = torch.zeros(keep.shape, dtype=torch.int64)
    keep[7] = torch.tensor([0.0, 0.0, 1.0, 0.5, 0.0])
    source[7] = 1 + TOKENS + torch.arange(TOKENS)  # the same token of row 1
    keep[8] = 1.75
    keep[9] = 0.0
    source[9] = 1 + TOKENS + torch.randperm(TOKENS, generator=generator)
    keep[10, 4] = 1.0
    source[10] = torch.tensor([5, 0, 1, 10, 15])
    return {
        "hidden": hidden,
        "mask": mask,
        "ref": ref,
        "branch": branch,
        "keep": keep,
        "source": source,
    }


def main() -> None:
    """Write the inputs and torch's output."""
    sys.path.insert(0, str(REPOSITORY / "export"))
    from intaglio_export.networks.suppress import ma_suppress

    inputs = make_inputs()
    OUT.mkdir(exist_ok=True)
    for name, tensor in (inputs | {"output": ma_suppress(**inputs)}).items():
        np.save(OUT / f"{name}.npy", tensor.numpy())


if __name__ == "__main__":
    main()
