"""Tell the weights in files from the scales and marks that stand beside them.

No library here reads quantised weights of all formats that people have. Those whose numbers are
known exactly become plain weights here, one at a time; the others are refused. All parts and all
kinds of source are checked here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intaglio_export.errors import ExportError
from intaglio_export.sources import gguf_file, quantised, weights
from intaglio_export.sources.quantised import FP8, Quantised
from intaglio_export.sources.weights import STORED, Stored

_INDICES = ("I64", "BOOL")  # of positions, for example; nobody stores quantised weights in these
# They tell ComfyUI how to compute, and say nothing about the values of the weights.
_MARK = re.compile(r"(?:.*\.)?(?:scaled_fp8|scale_input|input_scale|comfy_quant)")
_ALL_SCALED = "scaled_fp8"  # stands in a part whose matrices in fp8 all have scales
# What stands beside a quantised weight.
_COMPANION = re.compile(r"scale|zero|quant|absmax|smooth|SCB|lora_(?:up|down)", re.IGNORECASE)


class Checkpoint:
    """Tensors of .safetensors or .gguf files by name, without scales and marks."""

    def __init__(self, entries: Mapping[str, Stored]) -> None:
        self._entries = entries

    @classmethod
    def open(cls, files: Iterable[Path]) -> Checkpoint:
        """Read the headers of `files`.

        Raises:
            ExportError: a file is cut short or is not a .safetensors or .gguf file.
        """
        entries: dict[str, Stored] = {}
        for file in files:
            if file.suffix == gguf_file.SUFFIX:
                entries |= gguf_file.header(file)
            else:
                entries |= (held := weights.header(file)) | quantised.described(file, held)
        return cls(entries)

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
    def quantised(self) -> dict[str, Quantised]:
        """The weights that have a scale or a description beside them."""
        beside: dict[str, dict[str, Stored]] = {}
        for name, entry in self._entries.items():
            if (of := self._of(name)) is not None:
                beside.setdefault(of, {})[quantised.ROLES[name.rpartition(".")[2]]] = entry
        return {name: Quantised(name, self._entries[name], by) for name, by in beside.items()}

    @cached_property
    def companions(self) -> set[str]:
        """The names of all scales and marks."""
        return {k for k in self._entries if _MARK.fullmatch(k) or self._of(k) is not None}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights."""
        stored = {name: self._entries[name].shape for name in self.names}
        return stored | {name: weight.shape for name, weight in self.quantised.items()}

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """The type of the first weight that is stored in a type of 16 bits or more."""
        entries = (e for k, e in self._entries.items() if k not in self.companions)
        return next((STORED[e.dtype] for e in entries if e.dtype in STORED), None)

    @property
    def in_place(self) -> bool:
        """Whether a library can load the stored numbers, which `scale` then scales."""
        gguf = any(entry.file.suffix == gguf_file.SUFFIX for entry in self._entries.values())
        return not gguf and all(weight.in_place for weight in self.quantised.values())

    def problem(self) -> str | None:
        """Say which tensor is quantised in a way that cannot be undone exactly, or return None."""
        all_scaled = any(name.rpartition(".")[2] == _ALL_SCALED for name in self._entries)
        for name, entry in sorted(self._entries.items()):
            if name in self.companions or entry.packed:
                continue
            weight = self.quantised.get(name)
            if weight is None and entry.dtype not in (*STORED, *FP8, *_INDICES):
                return f"{name} is quantised ({entry.dtype})"
            if weight is not None and (problem := weight.problem()):
                return problem
            if (weight or entry.dtype in FP8) and (beside := self._unknown_beside(name)):
                return f"{name} is quantised with {beside}, which this version does not know"
            matrix = name.endswith(".weight") and len(entry.shape) == 2
            if all_scaled and weight is None and entry.dtype in FP8 and matrix:
                return f"{name} is quantised (scaled fp8) and lacks its scale"
        return None

    def read(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Read all weights: quantised ones in `dtype`, with their scales; others as stored.

        Raises:
            ExportError: a quantised weight stands for a number that is not finite.
        """
        return {
            name: self._values(name, entry.read(), dtype)
            for name, entry in self._entries.items()
            if name in self.names
        }

    def scale(self, network: nn.Module, unused: Iterable[str], dtype: torch.dtype) -> list[str]:
        """Multiply weights of `network`, which was loaded from these files, by their scales.

        Weights that have a scale get the type `dtype`. Returns the weights that were not found in
        the network, except those that are `unused`.
        """
        tensors: dict[str, Any] = network.state_dict(keep_vars=True)
        lost, done = [], set()
        for name in sorted(self.quantised.keys() - set(unused)):
            tensor = tensors.get(name, tensors.get(name.removeprefix("text_model.")))
            if tensor is None:
                lost.append(name)
            elif id(tensor) not in done:  # tied weights have two names, and may be stored twice
                done.add(id(tensor))
                scaled = self._values(name, tensor.detach(), dtype)
                torch.utils.swap_tensors(tensor, nn.Parameter(scaled, requires_grad=False))  # type: ignore[no-untyped-call]
        return lost

    def _of(self, name: str) -> str | None:
        """Return the weight that a tensor of that name is a scale or a description of."""
        stem, _, last = name.rpartition(".")
        weight = f"{stem}.weight"
        return weight if last in quantised.ROLES and weight in self._entries else None

    def _values(self, name: str, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the values that the tensor `stored` of that name stands for."""
        entry, weight = self._entries[name], self.quantised.get(name)
        if weight is None and not entry.packed and entry.dtype not in FP8:
            return stored
        values = weight.values(stored) if weight is not None else stored.to(dtype)
        if not bool(values.isfinite().all()):
            raise ExportError(
                f"The file {entry.file} holds a number in {name} that is not finite;"
                f" {weights.AGAIN}."
            )
        return values.to(dtype)

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
