"""Pipelines of any size with random weights, written tensor by tensor and never held."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

_SAFETENSORS = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.int64: "I64",
}
_CHUNK = 1 << 24  # numbers made at once


def write_pipeline(
    folder: Path,
    class_name: str,
    networks: Mapping[str, nn.Module],
    others: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    options: Mapping[str, Any] | None = None,
    hollow: bool = False,
) -> None:
    """Write a diffusers pipeline of `networks` on the meta device; `others` save themselves.

    `options` is what the index says besides parts. `hollow` leaves the weights a hole in their
    file, which takes no room on the disk and reads as zeros.
    """
    index: dict[str, Any] = {"_class_name": class_name, **(options or {})}
    generator = torch.Generator().manual_seed(0)
    for name, network in networks.items():
        index[name] = _class_of(network)
        (folder / name).mkdir(parents=True)
        if hasattr(network, "save_config"):
            network.save_config(folder / name)
        else:
            network.config.architectures = [type(network).__name__]  # type: ignore[union-attr]
            network.config.save_pretrained(folder / name)  # type: ignore[union-attr, operator]
        path = folder / name / weights_name(network)
        with path.open("wb") as file:
            if hollow:
                file.write(header(network, dtype))
                file.truncate(file.tell() + _bytes(network, dtype))
            else:
                _write_weights(network, file, dtype, generator)
    for name, other in others.items():
        index[name] = [None, None] if other is None else _class_of(other)
        if other is not None:
            other.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def weights_name(network: nn.Module) -> str:
    """File name of the weights in the network's folder."""
    diffusers = type(network).__module__.startswith("diffusers")
    return "diffusion_pytorch_model.safetensors" if diffusers else "model.safetensors"


def header(network: nn.Module, dtype: torch.dtype) -> bytes:
    """The head of a .safetensors file that holds all of the network's tensors in `dtype`."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in _tensors(network).items():
        stored = _stored(tensor, dtype)
        size = tensor.numel() * stored.itemsize
        entries[name] = {
            "dtype": _SAFETENSORS[stored],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return all tensors by name; tied ones have their first name only, as they are published."""
    named: dict[str, torch.Tensor] = network.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(named.items())}
    return {name: tensor for name, tensor in named.items() if first[id(tensor)] == name}


def _stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _bytes(network: nn.Module, dtype: torch.dtype) -> int:
    tensors = _tensors(network).values()
    return sum(tensor.numel() * _stored(tensor, dtype).itemsize for tensor in tensors)


_T5_HEAD = 64  # channels of an attention head of T5


def _write_weights(
    network: nn.Module, file: BinaryIO, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Normal numbers scaled by the width of the input, ones for norms, zeros for biases."""
    file.write(header(network, dtype))
    for name, tensor in _tensors(network).items():
        vector = tensor.ndim < 2
        fan_in = 1 if vector else math.prod(tensor.shape[1:])
        # T5 does not scale its attention's scores. Without its smaller queries the rounding of int8
        # grows from layer to layer until nothing is left of the result.
        if name.endswith(".q.weight"):
            fan_in *= _T5_HEAD
        for start in range(0, tensor.numel(), _CHUNK):
            count = min(_CHUNK, tensor.numel() - start)
            if vector:
                values = torch.full((count,), float(name.endswith("weight")))
            else:
                values = torch.randn(count, generator=generator) / math.sqrt(fan_in)
            file.write(values.to(_stored(tensor, dtype)).view(torch.uint8).numpy().data)


def _class_of(part: Any) -> list[str]:
    return [type(part).__module__.split(".")[0], type(part).__name__]
