"""Small .gguf files of real models, and the numbers that the gguf package says they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

State = dict[str, torch.Tensor]
Kind = GGMLQuantizationType
# Where the float16 scales are in a block of a type that gguf unpacks and cannot pack.
SCALES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_XS: (0,),
}


def packed(tensor: torch.Tensor, kind: Kind) -> np.ndarray:
    """The blocks that hold `tensor`, or random ones with small scales, as bytes [..., B]."""
    if kind not in SCALES:
        return quantize(tensor.contiguous().numpy(), kind)
    block, size = GGML_QUANT_SIZES[kind]
    made = np.random.default_rng(0).integers(0, 256, (tensor.numel() // block, size), np.uint8)
    for at in SCALES[kind]:
        made[:, at : at + 2] = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
    return made.reshape(*tensor.shape[:-1], -1)


def write(
    path: Path, state: State, kind: Kind, arch: str = "flux", narrow: bool = True, **texts: str
) -> State:
    """Write the matrices of `state` in `kind` where their rows fit, and the rest in float32.

    `narrow` leaves out leading dimensions of 1, as llama.cpp does. Returns what gguf reads, in
    float32.
    """
    writer = GGUFWriter(path, arch)
    for key, text in texts.items():
        writer.add_string(f"general.{key}", text)
    held = {}
    for name, tensor in state.items():
        fits = tensor.ndim == 2 and tensor.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0
        stored = kind if fits and name.endswith(".weight") else Kind.F32
        data = packed(tensor.float(), stored)
        held[name] = torch.from_numpy(dequantize(data, stored).copy()).reshape(tensor.shape)
        while narrow and data.ndim > 1 and data.shape[0] == 1:
            data = data[0]
        writer.add_tensor(name, data, raw_dtype=stored)
    finish(writer)
    return held


def finish(writer: GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
