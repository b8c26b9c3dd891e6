"""The transformer as runtimes without Detail Guidance get it: branches are rows of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from intaglio_export.adapters import Adapter
from intaglio_export.adapters.base import Inputs
from intaglio_export.adapters.packing import pack, positions
from intaglio_export.support.quiet import quiet

OPSET = 23


class PlainTransformer(nn.Module):
    """diffusers' transformer with a hook that scales one channel after block m, row by row.

    Rows with a factor of 1 are those of the transformer as it is, rows with 0 are D_m.
    """

    def __init__(self, adapter: Adapter, block: int, channel: int) -> None:
        super().__init__()
        self.transformer = adapter.transformer
        self._adapter = adapter
        self._factors = _Factors()
        self.register_buffer("mask", torch.zeros(adapter.channels), persistent=False)
        self.mask[channel] = 1.0
        self._handle = adapter.blocks()[block].register_forward_hook(self._scale)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The prediction; `tensors` are the adapter's inputs in order, then factors [rows]."""
        *inputs, self._factors.rows = tensors
        roles = [spec.role for spec in self._adapter.inputs()]
        prediction = self._adapter.predict(dict(zip(roles, inputs, strict=True)))
        self._factors.rows = None
        return prediction

    def close(self) -> None:
        """Leave the transformer as it was."""
        self._handle.remove()

    def _scale(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._factors.rows is None:  # not called by this object
            return output
        hidden, others = self._adapter.split(module, output)
        rows = self._factors.rows[:, None, None]
        return self._adapter.join(module, hidden * (1.0 - self.mask * (1.0 - rows)), others)


class _Factors:
    """Where the forward leaves them for the hook; nothing that torch.export looks into."""

    rows: torch.Tensor | None = None


def draw_latents(adapter: Adapter, images: int, side: int, seed: int = 0) -> torch.Tensor:
    """Noise of `side` x `side` tokens in the transformer's layout."""
    cells = side * adapter.patch_size
    shape = (images, adapter.latent().channels, cells, cells)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return pack(noise, adapter.patch_size) if adapter.latent().packed else noise


def draw_text(adapter: Adapter, rows: int, tokens: int) -> Inputs:
    """Random numbers for the embeddings of `rows` prompts."""
    return adapter.random_text(rows, tokens)


def fixed_inputs(adapter: Adapter, side: int) -> Inputs:
    """Inputs that depend on the size only."""
    roles = {spec.role for spec in adapter.inputs()}
    return {"position": positions(side, side)} if "position" in roles else {}


@torch.no_grad()
def export_plain(adapter: Adapter, block: int, channel: int, text_tokens: int, path: Path) -> None:
    """Write the graph of `PlainTransformer` as torch's exporter makes it; sizes are dynamic."""
    module = PlainTransformer(adapter, block, channel).eval()
    rows, side = 3, 6
    inputs = {
        "latent": draw_latents(adapter, rows, side),
        "timestep": torch.full((rows,), 500.0),
        **draw_text(adapter, rows, text_tokens),
        **fixed_inputs(adapter, side),
    }
    names = [spec.role for spec in adapter.inputs()]
    try:
        with quiet():
            torch.onnx.export(
                module,
                (*(inputs[name] for name in names), torch.ones(rows)),
                path,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(_dynamic(adapter),),
                input_names=[*names, "factors"],
                output_names=["prediction"],
                external_data=True,
                verbose=False,
            )
    finally:
        module.close()


def _dynamic(adapter: Adapter) -> tuple[dict[int, Any], ...]:
    rows, tokens = Dim("rows"), Dim("tokens")
    patch = adapter.patch_size
    sides = (patch * Dim("height", max=64), patch * Dim("width", max=64))
    packed = adapter.latent().packed
    dynamic: list[dict[int, Any]] = []
    for spec in adapter.inputs():
        if spec.role == "latent":
            dynamic.append({0: rows, 1: tokens} if packed else {0: rows, 2: sides[0], 3: sides[1]})
        else:
            dynamic.append({0: tokens if spec.role == "position" else rows})
    return (*dynamic, {0: rows})
