"""What stands beside a quantised weight in a .safetensors file, and the numbers that both mean.

Many programs store fp8 with a scale. The other formats are ComfyUI's, which describes each weight
in a tensor `comfy_quant` beside it or in the metadata of the file. They are computed as
comfy-kitchen defines it: github.com/Comfy-Org/comfy-kitchen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from intaglio_export.sources.weights import STORED, Stored

FP8 = ("F8_E4M3", "F8_E5M2")
_INT8, _NVFP4, _MXFP8 = "int8_tensorwise", "nvfp4", "mxfp8"
# How each format stores the weight.
_STORED_AS = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fn_rowwise": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2_rowwise": "F8_E5M2",
    _INT8: "I8",
    _NVFP4: "U8",
    _MXFP8: "F8_E4M3",
}
# What the last part of a name says of the tensor `weight` beside it, in the older and in the newer
# format of ComfyUI, and in files of other programs.
ROLES = {
    "scale_weight": "scale",
    "weight_scale": "scale",
    "weight_scale_2": "total",
    "comfy_quant": "description",
}
_ROTATION = {"convrot", "convrot_groupsize"}
# How ComfyUI multiplies, which changes no weight.
_NEEDLESS = {"full_precision_matrix_mult"}
_GROUP = 256  # columns that are rotated together, if a description does not say it
# Columns with one scale, and the type of the scales, which some files store as bytes.
_BLOCKS = {_NVFP4: (16, "F8_E4M3"), _MXFP8: (32, "F8_E8M0")}
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Quantised:
    """A weight of that name, and the tensors beside it by their role in `ROLES`."""

    name: str
    weight: Stored
    beside: Mapping[str, Stored]

    @cached_property
    def _description(self) -> dict[str, Any] | None:
        """What ComfyUI says of the weight; where it says nothing, the weight is in fp8."""
        if "description" not in self.beside:
            return None
        text = bytes(self.beside["description"].read().flatten().view(torch.uint8).tolist())
        try:
            described = json.loads(text)
        except ValueError:
            described = None
        if not isinstance(described, dict):
            return {"format": text.decode(errors="replace")}
        params = described.pop("params", None)  # the older place
        return (params if isinstance(params, dict) else {}) | described

    @property
    def _format(self) -> str:
        return str((self._description or {}).get("format", "fp8"))

    @property
    def _rotated(self) -> Any:
        """How many columns were rotated together, or 0."""
        described = self._description or {}
        return described.get("convrot_groupsize", _GROUP) if described.get("convrot") else 0

    @property
    def in_place(self) -> bool:
        """Whether each stored number is one of the weight's, to be multiplied by a scale."""
        return self.weight.dtype not in ("I8", "U8") and self._format != _MXFP8

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight. nvfp4 stores two numbers in a byte."""
        *rows, columns = self.weight.shape or (1,)
        return (*rows, 2 * columns) if self._format == _NVFP4 else self.weight.shape

    def problem(self) -> str | None:
        """Say why the numbers cannot be known, or return None."""
        stored = self.weight.dtype
        if self._description is None and stored not in FP8:
            if stored not in STORED:
                return f"{self.name} is quantised ({stored}), and nothing in the file says how"
            if "scale" not in self.beside or not bool((self.beside["scale"].read() == 1).all()):
                return f"{self.name} is {stored}, and has a scale as if it were fp8"
        elif self._description is not None:
            if (wanted := _STORED_AS.get(self._format)) is None:
                return f"{self.name} is quantised ({self._format})"
            known = {"format", *_NEEDLESS, *(_ROTATION if self._format == _INT8 else ())}
            if self._description.keys() - known:
                return f"{self.name} is quantised ({json.dumps(self._description)})"
            if stored != wanted:
                return f"{self.name} is {stored}, and is described as {self._format}"
        return self._lack() or self._misshapen() or self._infinite()

    def values(self, weight: torch.Tensor) -> torch.Tensor:
        """Return in float32 the numbers that `weight`, as it is stored, stands for."""
        if self._format in _BLOCKS:
            values = _unpacked(weight) if self._format == _NVFP4 else weight.float()
            rows, columns = values.shape
            blocks = values.reshape(rows, -1, _BLOCKS[self._format][0])
            scales = _in_rows(self._scales())[:rows, : blocks.shape[1], None]
            if "total" in self.beside:
                scales = scales * self.beside["total"].read().float()
            return (blocks * scales).reshape(rows, columns)
        scale = self._scales()
        if scale.numel() > 1:
            scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
        values = weight.float() * scale
        return _rotated_back(values, self._rotated) if self._rotated else values

    def _scales(self) -> torch.Tensor:
        """Return the scales in float32."""
        scale = self.beside["scale"].read()
        if scale.dtype == torch.uint8:
            kind = torch.float8_e8m0fnu if self._format == _MXFP8 else torch.float8_e4m3fn
            scale = scale.view(kind)
        return scale.float()

    def _lack(self) -> str | None:
        wanted = ("scale", "total") if self._format == _NVFP4 else ("scale",)
        if (missing := next((role for role in wanted if role not in self.beside), None)) is None:
            return None
        last = {"scale": "weight_scale", "total": "weight_scale_2"}[missing]
        stem = self.name.removesuffix("weight")
        return f"{self.name} is quantised ({self._format}) and lacks its scale, {stem}{last}"

    def _misshapen(self) -> str | None:
        scale, rows = self.beside["scale"], self.weight.shape[:1]
        shape = "x".join(map(str, scale.shape)) or "a number"
        if "total" in self.beside and self._format != _NVFP4:
            return f"{self.name} is quantised ({self._format}) with two scales"
        if self._format in _BLOCKS:
            block, kind = _BLOCKS[self._format]
            if len(self.shape) != 2 or self.shape[1] % block:
                return f"{self.name} is quantised ({self._format}) and has no rows of {block}"
            padded = (_up(self.shape[0], 128), _up(self.shape[1] // block, 4))
            if scale.dtype not in (kind, "U8") or scale.shape != padded:
                return f"{self.name} has {scale.dtype} scales of another layout ({shape})"
            if "total" in self.beside and any(size > 1 for size in self.beside["total"].shape):
                return f"{self.name} has more than one scale of the whole weight"
            return None
        per_row = scale.shape[:1] == rows and all(size == 1 for size in scale.shape[1:])
        if scale.dtype not in STORED or not (per_row or all(size == 1 for size in scale.shape)):
            return f"{self.name} is quantised ({self._format}) with scales of blocks ({shape})"
        if (group := self._rotated) and not (
            len(self.shape) == 2 and _is_power_of_4(group) and self.shape[1] % group == 0
        ):
            return f"{self.name} is rotated by {group} columns, which cannot be"
        return None

    def _infinite(self) -> str | None:
        scales = [self._scales()]
        if "total" in self.beside:
            scales.append(self.beside["total"].read().float())
        finite = all(bool(scale.isfinite().all()) for scale in scales)
        return None if finite else f"the scale of {self.name} is not finite"


def described(file: Path, entries: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return what the metadata of a .safetensors file says of its weights, as tensors beside them.

    `entries` are the tensors of the file. A name in the metadata may lack their prefix.
    """
    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get("_quantization_metadata", "{}")
    try:
        layers = json.loads(text).get("layers", {}).items()
    except (ValueError, AttributeError):
        layers = [("", text)]  # refused by what it says, for every weight
    found = {}
    for layer, description in layers:
        exact = f"{layer}.weight" in entries
        ends = f".{layer}.weight" if layer else ".weight"
        of = [layer] if exact else [k.removesuffix(".weight") for k in entries if k.endswith(ends)]
        said = {"format": description} if isinstance(description, str) else description
        stored = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
        for name in of:
            key = f"{name}.comfy_quant"
            found[key] = Stored(file, "U8", tuple(stored.shape), partial(torch.clone, stored))
    return found


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """Unpack nvfp4: two numbers in a byte, the first one in its upper half."""
    numbers = torch.tensor([*_E2M1, *(-number for number in _E2M1)])
    halves = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1)
    return numbers.index_select(0, halves.int()).reshape(packed.shape[0], -1)


def _in_rows(scales: torch.Tensor) -> torch.Tensor:
    """Return scales, which lie as cuBLAS takes them, in the order of rows and blocks.

    They are in tiles of 128 rows by 4 blocks. In a tile, row r is the row r % 32 of four, and the
    four columns of the row r // 32 of them stand together.
    """
    tiles = scales.reshape(scales.shape[0] // 128, -1, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(scales.shape)


def _rotated_back(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Undo ConvRot: each `group` of columns was multiplied by a matrix that is its own inverse."""
    four = torch.ones(4, 4) - 2 * torch.eye(4).flip(0)
    matrix = torch.ones(1, 1)  # becomes a Hadamard matrix
    while matrix.shape[0] < group:
        matrix = torch.kron(matrix, four)
    groups = weight.reshape(weight.shape[0], -1, group)
    turned: torch.Tensor = groups @ (matrix / group**0.5)
    return turned.reshape(weight.shape)


def _is_power_of_4(group: Any) -> bool:
    return isinstance(group, int) and group in {4**exponent for exponent in range(1, 9)}


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
