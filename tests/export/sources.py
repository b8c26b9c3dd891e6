"""Folders of the tiny pipelines, and how to look at what was loaded from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from intaglio_export.adapters import Adapter
from tests.families import chroma, dit, flux, flux2, krea2, pixart_sigma, qwen_image, sd3

FAMILIES: dict[str, Callable[[], Any]] = {
    "sd3": sd3.make_sd35,
    "flux": flux.make_dev,
    "flux2": flux2.make_distilled,
    "dit": dit.make_pipeline,
    "pixart-sigma": pixart_sigma.make_pipeline,
    "qwen-image": qwen_image.make_pipeline,
    "chroma": chroma.make_pipeline,
    "krea2": krea2.make_base,
}


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def inputs(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Random inputs by role for two rows, of small sizes."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"base_rows": 2, "text_length": 5, "tokens": 4, "latent_height": 4, "latent_width": 4}
    made = {}
    for spec in adapter.inputs():
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        made[spec.role] = torch.randn(shape, generator=generator)
    return made


@torch.no_grad()
def prediction(adapter: Adapter) -> torch.Tensor:
    """Of the transformer as it stands, in the adapter's precision."""
    return adapter.run(inputs(adapter))


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    """The same tensors under the same names."""
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, msg=name)
