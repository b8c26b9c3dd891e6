"""Read .gguf files, in which the types of llama.cpp pack numbers in blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFReader,
    ReaderTensor,
    get_tensor_name_map,
)
from gguf.quants import dequantize

from intaglio_export.errors import ExportError
from intaglio_export.sources.weights import AGAIN, Stored, pointer
from intaglio_export.support.memory import page_out

SUFFIX = ".gguf"
_BF16 = GGMLQuantizationType.BF16
_UNKNOWN = re.compile(r"(\d+)\)? is not a valid GGMLQuantizationType")
# ComfyUI-GGUF's, for tensors of more dimensions than llama.cpp has.
_SHAPE = "comfy.gguf.orig_shape."
# The language models whose tensors llama.cpp only renames.
_ENCODERS = {
    "t5": MODEL_ARCH.T5,
    "t5encoder": MODEL_ARCH.T5ENCODER,
    "qwen3": MODEL_ARCH.QWEN3,
    "qwen2vl": MODEL_ARCH.QWEN2VL,  # Qwen2.5-VL too
}
# T5's decoder, and what makes words of a language model's output.
_NEEDLESS = ("dec.", "output.")
# The eye of Qwen2.5-VL in transformers' names.
_VISION = re.compile(r"(model\.)?visual\.")


def header(path: Path) -> dict[str, Stored]:
    """Read what the header of a .gguf file says of its tensors, by name.

    Raises:
        ExportError: the file is cut short or is not a GGUF file, or it holds a type that the gguf
            package cannot unpack.
    """
    reader = _open(path)
    for kind in sorted({tensor.tensor_type for tensor in reader.tensors}):
        if not _is_readable(kind):
            raise ExportError(_unreadable(path, kind.name))
    return {tensor.name: _stored(path, reader, tensor) for tensor in reader.tensors}


def text_field(path: Path, key: str) -> str | None:
    """Return a text of the metadata, such as general.architecture, or None."""
    field = _open(path).get_field(key)
    return str(field.contents()) if field is not None else None


def is_language_model(names: Iterable[str]) -> bool:
    """Return whether llama.cpp gave its names to the tensors of a file."""
    return "token_embd.weight" in names


def as_transformers(
    path: Path, state: dict[str, torch.Tensor], expected: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Give the tensors of a language model the names that transformers has for them.

    `expected` are the names of the model. This removes tensors from `state`. A file may have these
    names already.

    Raises:
        ExportError: llama.cpp changes more than the names of such a model.
    """
    if not is_language_model(state):
        files = {name.replace("language_model.", ""): name for name in expected}
        return {files.get(k, k): v for k, v in state.items() if not _VISION.match(k)}
    kind = text_field(path, "general.architecture")
    if kind not in _ENCODERS:
        raise ExportError(
            f"The file {path} holds a language model of the kind {kind}, and only T5, Qwen3 and"
            f" Qwen2.5-VL are read from {SUFFIX} files; give its .safetensors files."
        )
    layers = sum(name.endswith(".attn_q.weight") for name in state)
    names = get_tensor_name_map(_ENCODERS[kind], layers)
    renamed = {}
    for name in expected:
        stem, _, last = name.replace("language_model.", "").rpartition(".")
        found = names.get_name(stem) or names.get_name(f"model.{stem}")
        if (stored := f"{found}.{last}") in state:
            renamed[name] = state.pop(stored)
    return renamed | {k: v for k, v in state.items() if not k.startswith(_NEEDLESS)}


def _open(path: Path) -> GGUFReader:
    try:
        reader = GGUFReader(path, "c")  # torch warns of memory that cannot be written
    except OSError as error:
        raise ExportError(f"The file {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        if match := _UNKNOWN.search(str(error)):
            raise ExportError(_unreadable(path, f"number {match[1]}")) from error
        what = pointer(path) or f"is cut short or not a {SUFFIX} file; {AGAIN}"
        raise ExportError(f"The file {path} {what}.") from error
    if reader.byte_order != "I":
        raise ExportError(f"The file {path} is for processors of another byte order; convert it.")
    parts = reader.get_field("split.count")
    if parts is not None and parts.contents() > 1:
        raise ExportError(
            f"The file {path} is one of {parts.contents()}; join them with `llama-gguf-split"
            " --merge`."
        )
    return reader


def _stored(path: Path, reader: GGUFReader, tensor: ReaderTensor) -> Stored:
    kind, shape = tensor.tensor_type, tuple(tensor.shape.tolist()[::-1])
    if (original := reader.get_field(_SHAPE + tensor.name)) is not None:
        shape = tuple(original.contents())
    packed = GGML_QUANT_SIZES[kind][0] > 1
    return Stored(path, kind.name, shape, partial(_read, tensor, shape), packed)


def _read(tensor: ReaderTensor, shape: tuple[int, ...]) -> torch.Tensor:
    stored = torch.from_numpy(tensor.data)
    if tensor.tensor_type == _BF16:
        stored = stored.view(torch.bfloat16)
    elif GGML_QUANT_SIZES[tensor.tensor_type][0] > 1:
        unpacked = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
        page_out(stored)
        stored = unpacked
    return stored.reshape(shape)


def _is_readable(kind: GGMLQuantizationType) -> bool:
    block, size = GGML_QUANT_SIZES[kind]
    try:
        if block > 1:
            dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _unreadable(path: Path, kind: str) -> str:
    return (
        f"The file {path} holds tensors of the type {kind}, which gguf {version('gguf')} cannot"
        " unpack; give the model in another type, such as Q8_0."
    )
