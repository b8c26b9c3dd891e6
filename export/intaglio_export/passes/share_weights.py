"""Move the weights of one or more graphs into one external file, each distinct tensor once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

# Below this, a tensor stays in the graph: shape constants must be visible to shape inference.
INLINE_BYTES = 1024
# A page, so that runtimes can map the file.
ALIGNMENT = 4096


def share_weights(models: Sequence[ir.Model], folder: Path, name: str = "weights.data") -> None:
    """Write the initializers of `models` to `folder`/`name` and let the graphs refer to it.

    Tensors of equal bytes, in one graph or in several, are stored once. Tensors that are external
    already stay where they are.

    Precondition: `folder` exists and the models will be saved in it.
    Postcondition: every initializer of `INLINE_BYTES` or more is an external tensor.

    Raises:
        OSError: the file cannot be written.
    """
    placed: dict[str, int] = {}
    with (folder / name).open("wb") as file:
        for model in models:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                assert tensor is not None, f"initializer {value.name} has no value"
                if tensor.nbytes < INLINE_BYTES or isinstance(tensor, ir.ExternalTensor):
                    continue
                data = _bytes(tensor)
                key = hashlib.sha256(data).hexdigest()
                if key not in placed:
                    placed[key] = _append(file, data)
                value.const_value = ir.ExternalTensor(
                    name,
                    placed[key],
                    len(data),
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=value.name or "",
                    base_dir=folder,
                )


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    """The tensor's memory; a copy of this one tensor where it is a transposed view."""
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


def _append(file: BinaryIO, data: memoryview) -> int:
    """Where `data` begins in `file`."""
    offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    file.write(b"\0" * (offset - file.tell()))
    file.write(data)
    return offset
