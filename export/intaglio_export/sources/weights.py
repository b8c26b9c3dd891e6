"""Choose the weight files of a part, and check that they are complete and fit the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from intaglio_export.errors import ExportError
from intaglio_export.sources.messages import sizes

Shapes = Mapping[str, tuple[int, ...]]

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"(?:-\d{5}-of-\d{5})?\.(?P<kind>safetensors|bin)"
)
# How file names show that the weights are stored in this type.
_VARIANTS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LFS = b"version https://git-lfs"
AGAIN = "download it again"


def is_weights(name: str) -> bool:
    """Return whether a file of that name holds weights in any format that diffusers knows."""
    return name.endswith((".safetensors", ".bin", ".msgpack", ".onnx", ".pb", ".pt", ".h5"))


def choose(names: Iterable[str], dtype: torch.dtype) -> tuple[list[str], str | None]:
    """Choose the weight files of a part to read for `dtype`, and return them with their variant.

    safetensors come before .bin, which is all that some older models have. The variant of `dtype`
    comes before the plain files, and these come before any other variant.
    """
    sets: dict[tuple[str, str | None], list[str]] = {}
    for name in sorted(names):
        if match := _WEIGHTS.fullmatch(name):
            sets.setdefault((match["kind"], match["variant"]), []).append(name)
    order = [_VARIANTS.get(dtype), None]

    def rank(key: tuple[str, str | None]) -> tuple[bool, int]:
        return key[0] == "bin", order.index(key[1]) if key[1] in order else len(order)

    if not sets:
        return [], None
    best = min(sets, key=rank)
    return sets[best], best[1]


def index_of(name: str) -> str:
    """Return the name of the index that belongs to `name`, a weight file of several."""
    match = _WEIGHTS.fullmatch(name)
    assert match is not None
    stem = name.split(".", 1)[0].split("-", 1)[0]
    variant = f".{match['variant']}" if match["variant"] else ""
    return f"{stem}.{match['kind']}.index{variant}.json"


def check_whole(folder: Path, names: list[str]) -> None:
    """Check that all chosen weight files of a part exist and are complete.

    Raises:
        ExportError: a file is missing or cut short.
    """
    if index := next((folder / index_of(name) for name in names if "-of-" in name), None):
        listed = set(_read_index(index).values())
        if absent := sorted(listed - set(names)):
            raise ExportError(
                f"The file {folder / absent[0]}, one of {len(listed)}, is missing; {AGAIN}."
            )
    for name in names:
        if name.endswith(".safetensors"):
            shapes(folder / name)


def _read_index(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"The file {path} is missing or not an index; {AGAIN}.") from error
    return found


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of all tensors from the header of a .safetensors file.

    Raises:
        ExportError: the file is cut short or is not a .safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ExportError(f"The file {path} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        with path.open("rb") as raw:
            pointer = raw.read(len(_LFS)) == _LFS
        what = (
            "is a pointer of Git LFS, not the weights; run `git lfs pull` in its folder"
            if pointer
            else f"is cut short or not a .safetensors file; {AGAIN}"
        )
        raise ExportError(f"The file {path} {what}.") from error


def stored_dtype(path: Path) -> torch.dtype | None:
    """Return the type of the first floating-point tensor in a .safetensors file."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (it has no other way to be iterated)
            if dtype := _STORED.get(file.get_slice(name).get_dtype()):
                return dtype
    return None


def misfit(expected: Shapes, found: Shapes, *, names: bool = True) -> str | None:
    """Say how tensors differ from those of a model, or return None.

    With `names=False` only the shapes of tensors with equal names are compared.
    """
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            return sizes(name, found[name], expected[name])
    if names and (missing := sorted(expected.keys() - found.keys())):
        return lacking(missing)
    if names and (more := sorted(found.keys() - expected.keys())):
        return surplus(more)
    return None


def lacking(names: list[str]) -> str:
    """Say that a file lacks tensors of the model."""
    return f"it lacks {names[0]}{_others(names)}"


def surplus(names: list[str]) -> str:
    """A file that has tensors which the model has not, in words."""
    return f"it has {names[0]}{_others(names)}, which the model has not"


def _others(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def empty_like(cls: Any, folder: Path, subfolder: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a diffusers model of the configuration in the folder.

    Raises:
        ExportError: there is no model of that configuration.
    """
    from accelerate import init_empty_weights

    try:
        config = cls.load_config(str(folder), subfolder=subfolder, local_files_only=True)
        with init_empty_weights():
            model = cls.from_config(config)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ExportError(
            f"The file {folder / subfolder / 'config.json'} does not describe the class"
            f" {cls.__name__} ({reason}): a field of it is missing or wrong; {AGAIN}."
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
