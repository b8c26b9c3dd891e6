"""Load one part of a pipeline's folder: a network, a tokenizer or a scheduler."""

from __future__ import annotations

import inspect
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from intaglio_export.bundle.tokenizer_tables import sentencepiece_problem
from intaglio_export.errors import ExportError
from intaglio_export.sources import weights
from intaglio_export.sources.messages import out_of_memory, plain

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
_AGAIN = "download or save the pipeline again"
# Under these names, a tensor that the model lacks is a layer that its configuration forgot. Other
# unknown tensors are parts that the pipeline does not use, such as T5's decoder.
_ENCODER = ("encoder.", "text_model.encoder.")

# The old name of the transformers of DiT and PixArt; diffusers still loads the right class for it.
_LEGACY = "Transformer2DModel"
# Without any of these files, transformers silently makes an empty tokenizer.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")


@dataclass(frozen=True)
class Part:
    """The folder of a part, and the class that model_index.json gives it."""

    folder: Path
    name: str
    cls: type

    @property
    def path(self) -> Path:
        """The folder of the part."""
        return self.folder / self.name

    @property
    def is_network(self) -> bool:
        """Whether the part has weights."""
        return issubclass(self.cls, nn.Module)


def part_class(folder: Path, name: str, entry: Any) -> type:
    """Return the class of an entry [library, class] of model_index.json.

    Raises:
        ExportError: it is from another library, or from another version of the library.
    """
    library, class_name = entry
    if library not in LIBRARIES:
        raise ExportError(
            f"The part {name} of {folder} is of class {class_name} of {library}; only parts of"
            " diffusers and transformers can be exported."
        )
    found = getattr(LIBRARIES[library], class_name, None)
    if not inspect.isclass(found):
        raise ExportError(
            f"The part {name} of {folder} is of class {class_name}, which the {library} installed"
            f" here ({LIBRARIES[library].__version__}) does not have; install the one that wrote"
            " it."
        )
    return found


def check_class(part: Part, loaded: Any, pipeline_class: type) -> None:
    """Check that a network has the class that the pipeline expects."""
    hint = typing.get_type_hints(vars(pipeline_class)["__init__"]).get(part.name)
    known = tuple(c for c in (hint, *typing.get_args(hint)) if inspect.isclass(c))
    if known and not isinstance(loaded, known):
        raise ExportError(
            f"The part {part.name} of {part.folder} is of class {type(loaded).__name__}, and"
            f" {pipeline_class.__name__} takes {known[0].__name__}; {_AGAIN}."
        )


def held_in(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a part's weights if matrix products have the type `dtype`."""
    return torch.float32 if name == "vae" else dtype


def load_part(part: Part, dtype: torch.dtype) -> Any:
    """Load the part with its library. Weights have their stored type, or else `dtype`.

    Raises:
        ExportError: the part is missing, cannot be loaded, or has weights of another model.
    """
    if not part.path.is_dir():
        raise ExportError(
            f"The source {part.folder} lacks the part {part.name}: its model_index.json names it,"
            f" but there is no folder {part.path}; {_AGAIN}."
        )
    try:
        if part.is_network:
            return _load_network(part, dtype)
        if issubclass(part.cls, diffusers.SchedulerMixin):
            _read_config(part.path / "scheduler_config.json")
        elif not any(any(part.path.glob(pattern)) for pattern in _VOCABULARIES):
            raise ExportError(
                f"The folder {part.path} holds no vocabulary (tokenizer.json); {_AGAIN}."
            )
        cls: Any = part.cls
        return cls.from_pretrained(str(part.folder), subfolder=part.name, local_files_only=True)
    except ExportError:
        raise
    except Exception as error:  # the libraries raise errors of any class
        if out_of_memory(error):
            raise
        problem = None if part.is_network else sentencepiece_problem(part.folder)
        sentence = f"The part {part.path} cannot be loaded: {plain(error)}; {_AGAIN}."
        raise ExportError(problem or sentence) from error


def _load_network(part: Part, dtype: torch.dtype) -> nn.Module:
    config = _read_config(part.path / "config.json")
    named = config.get("_class_name", part.cls.__name__)
    if _LEGACY not in (named, part.cls.__name__) and named != part.cls.__name__:
        raise ExportError(
            f"The part {part.path} is of class {named} by its config.json, and of class"
            f" {part.cls.__name__} by the model_index.json above it; {_AGAIN}."
        )
    names, variant = weights.choose((p.name for p in part.path.iterdir()), dtype)
    if not names:
        raise ExportError(f"The folder {part.path} holds no weights (.safetensors); {_AGAIN}.")
    weights.check_whole(part.path, names)
    safe = names[0].endswith(".safetensors")
    # The stored type is kept, so that the file is mapped. `store_weights_in` converts it later, one
    # tensor at a time. The VAE stays float32.
    if safe and part.name != "vae":
        dtype = weights.stored_dtype(part.path / names[0]) or dtype
    options: dict[str, Any] = {}
    cls: Any = part.cls
    if safe and issubclass(part.cls, diffusers.ModelMixin):
        expected = weights.empty_like(cls, part.folder, part.name)
        found = {k: v for name in names for k, v in weights.shapes(part.path / name).items()}
        # Only equal names are compared, because diffusers renames the tensors of older files.
        _refuse(part, names, weights.misfit(expected, found, names=False))
    elif not issubclass(part.cls, diffusers.ModelMixin):
        options["ignore_mismatched_sizes"] = True  # `_difference` reports them in one sentence
    network, info = cls.from_pretrained(
        str(part.folder),
        subfolder=part.name,
        dtype=dtype,
        variant=variant,
        use_safetensors=safe,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    _refuse(part, names, _difference(info, isinstance(network, diffusers.ModelMixin)))
    loaded: nn.Module = network
    return loaded


def _difference(info: dict[str, Any], strict: bool) -> str | None:
    """Say what diffusers and transformers only log: weights that stay random, and unused layers."""
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        return weights.misfit({name: tuple(expected)}, {name: tuple(found)})
    if info["missing_keys"]:
        return weights.lacking(sorted(info["missing_keys"]))
    parameters = [name for name in info["unexpected_keys"] if name.endswith((".weight", ".bias"))]
    unused = sorted(name for name in parameters if strict or name.startswith(_ENCODER))
    return weights.surplus(unused) if unused else None


def _refuse(part: Part, names: list[str], problem: str | None) -> None:
    if problem is not None:
        raise ExportError(
            f"The weights {part.path / names[0]} do not fit {part.path / 'config.json'}:"
            f" {problem}; {_AGAIN}."
        )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ExportError(f"The file {path} is missing; {_AGAIN}.")
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"The file {path} cannot be read: {error}; {_AGAIN}.") from error
    if not isinstance(config, dict):
        raise ExportError(f"The file {path} is not a configuration; {_AGAIN}.")
    read: dict[str, Any] = config
    return read
