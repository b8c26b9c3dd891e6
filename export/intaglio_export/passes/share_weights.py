"""Move the weights of one or more graphs into one external file, without duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

# Smaller tensors stay in the graph, because shape inference must see shape constants.
INLINE_BYTES = 1024
# The size of a page, so that runtimes can map the file.
ALIGNMENT = 4096


def share_weights(models: Sequence[ir.Model], folder: Path, name: str = "weights.data") -> None:
    """Write the initializers of `models` to `folder`/`name` and let the graphs refer to it.

    Tensors with equal bytes are stored once, also across graphs. Tensors that are external already
    stay where they are.

    Precondition: `folder` exists and the models will be saved in it.
    Postcondition: every initializer of `INLINE_BYTES` or more is an external tensor.

    Raises:
        OSError: the file cannot be written.
    """
    offsets: dict[str, int] = {}
    with (folder / name).open("wb") as file:
        for model in models:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                assert tensor is not None, f"initializer {value.name} has no value"
                if tensor.nbytes < INLINE_BYTES or isinstance(tensor, ir.ExternalTensor):
                    continue
                data = _bytes(tensor)
                key = hashlib.sha256(data).hexdigest()
                if key not in offsets:
                    offsets[key] = _append(file, data)
                value.const_value = ir.ExternalTensor(
                    name,
                    offsets[key],
                    len(data),
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=value.name or "",
                    base_dir=folder,
                )


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    """Return the tensor's memory, or a copy if the tensor is a transposed view or of 4 bits."""
    if tensor.dtype.bitwidth < 8:  # NumPy has a byte for each number
        return memoryview(tensor.tobytes())
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


def _append(file: BinaryIO, data: memoryview) -> int:
    """Append `data` to `file`, aligned, and return its offset."""
    offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    file.write(b"\0" * (offset - file.tell()))
    file.write(data)
    return offset
