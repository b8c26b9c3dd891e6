"""Tell the weights in .safetensors files from the scales and marks that stand beside them.

Programs store weights in fp8 with a scale beside them, and no library here applies it. Here a scale
is applied where it is one number for a tensor or for a row; weights in other quantised formats are
refused. All parts and all kinds of source are checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from intaglio_export.sources.weights import STORED, Stored, header

FP8 = ("F8_E4M3", "F8_E5M2")
_INDICES = ("I64", "BOOL")  # of positions, for example; nobody stores quantised weights in these
# The scale of `x.weight` in the older and in the newer format of ComfyUI, and of other programs.
_SCALE = re.compile(r"(?P<of>.*)\.(?:scale_weight|weight_scale)")
# They tell ComfyUI how to compute, and say nothing about the values of the weights.
_MARK = re.compile(r"(?:.*\.)?(?:scaled_fp8|scale_input|input_scale)")
_FORMAT = re.compile(r"(?P<of>.*)\.comfy_quant")
_FORMATS = ("float8_e4m3fn", "float8_e4m3fn_rowwise", "float8_e5m2", "float8_e5m2_rowwise")
# What stands beside a quantised weight.
_COMPANION = re.compile(r"scale|zero|quant|absmax|smooth|SCB|lora_(?:up|down)", re.IGNORECASE)


class Checkpoint:
    """Tensors of .safetensors files by name, without scales and marks."""

    def __init__(self, entries: Mapping[str, Stored]) -> None:
        self._entries = entries

    @classmethod
    def open(cls, files: Iterable[Path]) -> Checkpoint:
        """Read the headers of `files`.

        Raises:
            ExportError: a file is cut short or is not a .safetensors file.
        """
        return cls({name: entry for file in files for name, entry in header(file).items()})

    def under(self, prefix: str) -> Checkpoint:
        """Return the tensors whose names start with `prefix`, which they lose."""
        under = ((k, e) for k, e in self._entries.items() if k.startswith(prefix))
        return Checkpoint({name.removeprefix(prefix): entry for name, entry in under})

    def without(self, unwanted: Callable[[str], bool]) -> Checkpoint:
        """Return the tensors except the unwanted ones."""
        return Checkpoint({k: entry for k, entry in self._entries.items() if not unwanted(k)})

    @cached_property
    def names(self) -> set[str]:
        """The names of all weights."""
        return self._entries.keys() - self.companions

    @property
    def file(self) -> Path:
        """The first file."""
        return next(iter(self._entries.values())).file

    @cached_property
    def scales(self) -> dict[str, str]:
        """The name of the scale of each weight that has one."""
        pairs = ((f"{match['of']}.weight", name) for name, match in self._matching(_SCALE))
        return {weight: scale for weight, scale in pairs if weight in self._entries}

    @cached_property
    def companions(self) -> set[str]:
        """The names of all scales and marks."""
        found = {name for pattern in (_MARK, _FORMAT) for name, _ in self._matching(pattern)}
        return found | set(self.scales.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights."""
        return {name: self._entries[name].shape for name in self.names}

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """The type of the first weight that is stored in a type of 16 bits or more."""
        entries = (e for k, e in self._entries.items() if k not in self.companions)
        return next((STORED[e.dtype] for e in entries if e.dtype in STORED), None)

    def problem(self) -> str | None:
        """Say which tensor is quantised in a way that cannot be undone exactly, or return None."""
        for name, entry in sorted(self._entries.items()):
            if (match := _FORMAT.fullmatch(name)) and not _known_format(entry):
                return f"{match['of']} is quantised ({_text(entry)})"
            if name in self.companions:
                continue
            if entry.dtype not in (*STORED, *FP8, *_INDICES):
                return f"{name} is quantised ({entry.dtype})"
            if entry.dtype in FP8 and (beside := self._unknown_beside(name)):
                return f"{name} is quantised in fp8 with {beside}, which this version does not know"
        return next(filter(None, (self._scale_problem(w, s) for w, s in self.scales.items())), None)

    def read(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Read all weights: those in fp8 in `dtype`, with their scales; others as stored."""
        read = {}
        for path in {self._entries[name].file for name in self.names}:
            with safe_open(path, "pt") as file:  # once, because each opening maps the whole file
                for name, stored in self._entries.items():
                    if stored.file == path and name in self.names:
                        read[name] = self._unscaled(file.get_tensor(stored.name), name, dtype)
        return read

    def scale(self, network: nn.Module, unused: Iterable[str], dtype: torch.dtype) -> list[str]:
        """Multiply weights of `network`, which was loaded from these files, by their scales.

        Weights that have a scale get the type `dtype`. Returns the weights that were not found in
        the network, except those that are `unused`.
        """
        tensors: dict[str, Any] = network.state_dict(keep_vars=True)
        lost, done = [], set()
        for name in sorted(self.scales.keys() - set(unused)):
            tensor = tensors.get(name, tensors.get(name.removeprefix("text_model.")))
            if tensor is None:
                lost.append(name)
            elif id(tensor) not in done:  # tied weights have two names, and may be stored twice
                done.add(id(tensor))
                scaled = self._unscaled(tensor.detach(), name, dtype)
                torch.utils.swap_tensors(tensor, nn.Parameter(scaled, requires_grad=False))  # type: ignore[no-untyped-call]
        return lost

    def _matching(self, pattern: re.Pattern[str]) -> Iterable[tuple[str, re.Match[str]]]:
        return ((k, match) for k in self._entries if (match := pattern.fullmatch(k)))

    def _unscaled(self, weight: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return the values that the tensor `weight` of that name stands for."""
        if name not in self.scales:
            return weight.to(dtype) if self._entries[name].dtype in FP8 else weight
        scale = self._entries[self.scales[name]].read().float()
        if scale.numel() > 1:
            scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
        return (weight.float() * scale).to(dtype)

    def _scale_problem(self, name: str, scale_name: str) -> str | None:
        weight, scale = self._entries[name], self._entries[scale_name]
        rows = weight.shape[:1]
        per_row = scale.shape[:1] == rows and all(size == 1 for size in scale.shape[1:])
        if weight.dtype not in FP8 and not bool((scale.read() == 1).all()):
            return f"{name} is {weight.dtype}, and has a scale ({scale_name}) as if it were fp8"
        if scale.dtype not in STORED or not (per_row or all(size == 1 for size in scale.shape)):
            shape = "x".join(map(str, scale.shape))
            return f"{name} is quantised in fp8 with scales of blocks ({scale_name}: {shape})"
        return None

    def _unknown_beside(self, weight: str) -> str | None:
        """Return a tensor that belongs to the quantisation of `weight` and is not known here."""
        stem = weight.removesuffix("weight")
        beside = (stem + name for name in self._beside.get(stem, ()) if _COMPANION.search(name))
        return next((name for name in sorted(beside) if name not in self.companions), None)

    @cached_property
    def _beside(self) -> dict[str, list[str]]:
        """The last parts of all names, by what stands before them."""
        found: dict[str, list[str]] = {}
        for name in self._entries:
            stem, dot, last = name.rpartition(".")
            found.setdefault(stem + dot, []).append(last)
        return found


def _text(entry: Stored) -> str:
    return bytes(entry.read().flatten().view(torch.uint8).tolist()).decode(errors="replace")


def _known_format(entry: Stored) -> bool:
    """Return whether a `comfy_quant` says no more than that the weight is fp8 with a scale."""
    try:
        described = json.loads(_text(entry))
    except ValueError:
        return False
    known = isinstance(described, dict) and described.get("format") in _FORMATS
    return known and not described.keys() - {"format", "full_precision_matrix_mult"}
