"""Choose the weight files of a part, and check that they are complete and fit the model."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from intaglio_export.errors import ExportError
from intaglio_export.support.messages import plain, sizes

Shapes = Mapping[str, tuple[int, ...]]

_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"(?:-\d{5}-of-\d{5}(?:\.(?P<late>\w+))?)?\.(?P<kind>safetensors|bin)"
)
# How file names show that the weights are stored in this type.
_VARIANTS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
# Types of 16 bits or more, in the words of .safetensors.
STORED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_SEVERAL = "-of-"  # in the names of weight files of several
_LFS = b"version https://git-lfs"
AGAIN = "download it again"


def is_weights(name: str) -> bool:
    """Return whether a file of that name holds weights in any format that people publish."""
    return name.endswith(
        (".safetensors", ".bin", ".gguf", ".msgpack", ".onnx", ".pb", ".pt", ".h5")
    )


def choose(names: Iterable[str], dtype: torch.dtype) -> tuple[list[str], str | None]:
    """Choose the weight files of a part to read for `dtype`, and return them with their variant.

    safetensors come before .bin, which is all that some older models have. The variant of `dtype`
    comes before the plain files, and these come before any other variant. A single file comes
    before files of several.
    """
    sets: dict[tuple[str, str, str | None, bool], list[str]] = {}
    for name in sorted(names):
        if match := _WEIGHTS.fullmatch(name):
            key = (
                match["stem"],
                match["kind"],
                match["variant"] or match["late"],
                _SEVERAL in name,
            )
            sets.setdefault(key, []).append(name)
    order = [_VARIANTS.get(dtype), None]

    def rank(key: tuple[str, str, str | None, bool]) -> tuple[bool, int, bool]:
        _, kind, variant, several = key
        return kind == "bin", order.index(variant) if variant in order else len(order), several

    if not sets:
        return [], None
    best = min(sets, key=rank)
    return sets[best], best[2]


def indices_of(name: str) -> list[str]:
    """Return the names that the index of `name`, a weight file of several, may have.

    The first is today's name, and the other one is of files whose variant follows the number.
    """
    match = _WEIGHTS.fullmatch(name)
    assert match is not None
    variant = match["variant"] or match["late"]
    files = f"{match['stem']}.{match['kind']}"
    if variant is None:
        return [f"{files}.index.json"]
    return [f"{files}.index.{variant}.json", f"{files}.{variant}.index.json"]


def check_whole(folder: Path, names: list[str]) -> None:
    """Check that all chosen weight files of a part exist and are complete.

    Raises:
        ExportError: a file is missing or cut short.
    """
    if names and _SEVERAL in names[0]:
        listed = set(_read_index(_index(folder, names[0])).values())
        if absent := sorted(listed - set(names)):
            raise ExportError(
                f"The file {folder / absent[0]}, one of {len(listed)}, is missing; {AGAIN}."
            )
    for name in names:
        if name.endswith(".safetensors"):
            header(folder / name)


@contextmanager
def alone(folder: Path, names: list[str]) -> Iterator[Path]:
    """Yield a folder of the part with no weights but `names`, whose index has today's name.

    Where a single file and files of several are beside each other, diffusers reads the latter, and
    transformers the former. diffusers finds an older name of an index only if no folder above has a
    dot in its name, and transformers does not find it at all.
    """
    there = {path.name for path in folder.iterdir()}
    hidden = {name for name in there if _WEIGHTS.fullmatch(name) or ".index." in name} - {*names}
    index = {indices_of(names[0])[0]} if _SEVERAL in names[0] else set()
    if hidden == index:
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        for name in there - hidden:
            (Path(made) / name).symlink_to((folder / name).absolute())
        for name in index:
            (Path(made) / name).symlink_to(_index(folder, names[0]).absolute())
        yield Path(made)


def _index(folder: Path, name: str) -> Path:
    paths = [folder / index for index in indices_of(name)]
    return next((path for path in paths if path.is_file()), paths[0])


def _read_index(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"The file {path} is missing or not an index; {AGAIN}.") from error
    return found


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its type and shape there, and how to read it.

    `read` returns a tensor whose memory is a mapped part of the file. Where the file packs several
    numbers in a block, `packed` is true, and `read` returns float32.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]
    packed: bool = False


def header(path: Path) -> dict[str, Stored]:
    """Read what the header of a .safetensors file says of its tensors, by name.

    Raises:
        ExportError: the file is cut short or is not a .safetensors file.
    """
    try:
        file: Any = safe_open(path, "pt")  # once, because each opening maps the whole file
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ExportError(f"The file {path} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        what = pointer(path) or f"is cut short or not a .safetensors file; {AGAIN}"
        raise ExportError(f"The file {path} {what}.") from error
    return {
        name: Stored(
            path, found.get_dtype(), tuple(found.get_shape()), partial(file.get_tensor, name)
        )
        for name, found in slices.items()
    }


def pointer(path: Path) -> str | None:
    """Say that a file is a pointer of Git LFS, or return None."""
    with path.open("rb") as raw:
        if raw.read(len(_LFS)) != _LFS:
            return None
    return "is a pointer of Git LFS, not the weights; run `git lfs pull` in its folder"


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
    """Say that a file has tensors that the model does not have."""
    return f"it has {names[0]}{_others(names)}, which the model does not have"


def _others(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def empty(cls: Any, folder: Path, subfolder: str) -> nn.Module:
    """Return a network of the configuration in the folder whose tensors have no values.

    Raises:
        ExportError: there is no model of that configuration.
    """
    from accelerate import init_empty_weights

    where = {"subfolder": subfolder, "local_files_only": True}
    try:
        if issubclass(cls, diffusers.ModelMixin):
            config, make = cls.load_config(str(folder), **where), cls.from_config
        else:
            config, make = cls.config_class.from_pretrained(str(folder), **where), cls
        with init_empty_weights():
            made: nn.Module = make(config)
    except Exception as error:
        raise ExportError(
            f"The file {folder / subfolder / 'config.json'} does not describe the class"
            f" {cls.__name__} ({plain(error)}): a field of it is missing or wrong; {AGAIN}."
        ) from error
    return made


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a network's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
