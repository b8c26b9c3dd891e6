"""Load one part of a pipeline's folder: a network, a tokenizer or a scheduler."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
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
from intaglio_export.sources.checkpoint import Checkpoint
from intaglio_export.sources.weights import AGAIN
from intaglio_export.support.messages import out_of_memory, plain

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
# Tensors that some files have and no export needs: other halves of T5 and CLIP, and the numbers
# 0, 1, 2, ... of positions. diffusers' models have none.
_UNUSED = re.compile(
    r"(?:decoder|lm_head|vision_model|visual_projection|text_projection)\..*"
    r"|logit_scale|(?:.*\.)?position_ids"
)

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
    # A processor would need the packages of its image part. The tokenizer is in the same folder.
    held = "AutoTokenizer" if class_name.endswith("Processor") else class_name
    found = getattr(LIBRARIES[library], held, None)
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
            f" {pipeline_class.__name__} takes {known[0].__name__}; put such a part in its place."
        )


def check_unquantised(part: Part) -> None:
    """Check that the configuration of a network does not name a method of quantisation.

    Raises:
        ExportError: it names one. Only the program that quantised the weights can read them.
    """
    path = part.path / "config.json"
    method = _read_config(path).get("quantization_config") if path.is_file() else None
    if method:
        raise ExportError(
            f"The part {part.name} of {part.folder} is quantised ({_method(method)}), and an export"
            f" needs its unquantised weights; give the model that it was made from"
            + (". --quantize makes a small bundle of it." if part.name == "transformer" else ".")
        )


def _method(config: dict[str, Any]) -> str:
    """Return the method and the type of a quantization_config, as in "bitsandbytes nf4"."""
    four, eight = config.get("load_in_4bit"), config.get("load_in_8bit")
    method = config.get("quant_method") or ("bitsandbytes" if four or eight else "unknown method")
    if four or eight:
        kind = config.get("bnb_4bit_quant_type", "4 bits") if four else "int8"
    else:
        named = ("quant_type", "weights_dtype", "weights", "format", "quant_algo", "bits", "fmt")
        kind = next((config[name] for name in named if isinstance(config.get(name), str | int)), "")
    return f"{method} {kind}".strip()


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
            f" but there is no folder {part.path}; download the whole pipeline."
        )
    if part.is_network:
        return _load_network(part, dtype)
    if issubclass(part.cls, diffusers.SchedulerMixin):
        _read_config(part.path / "scheduler_config.json")
    elif not any(any(part.path.glob(pattern)) for pattern in _VOCABULARIES):
        raise ExportError(
            f"The folder {part.path} holds no vocabulary (tokenizer.json); download it again."
        )
    cls: Any = part.cls
    with loading(part):
        return cls.from_pretrained(str(part.folder), subfolder=part.name, local_files_only=True)


@contextmanager
def loading(part: Part) -> Iterator[None]:
    """Make one sentence of what diffusers and transformers raise when they load `part`."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # the libraries raise errors of any class
        if out_of_memory(error):
            raise
        if not part.is_network and (problem := sentencepiece_problem(part.folder)):
            raise ExportError(problem) from error
        name = part.cls.__module__.split(".")[0]
        library = f"{name} {LIBRARIES[name].__version__}"
        way_out = (
            "install what it asks for"
            if isinstance(error, ImportError)
            else f"it is damaged, or not of a version that {library} reads; download it again"
        )
        raise ExportError(
            f"The part {part.path} cannot be loaded: {plain(error)}; {way_out}."
        ) from error


def _load_network(part: Part, dtype: torch.dtype) -> nn.Module:
    config = _read_config(part.path / "config.json")
    named = config.get("_class_name", part.cls.__name__)
    if _LEGACY not in (named, part.cls.__name__) and named != part.cls.__name__:
        raise ExportError(
            f"The part {part.path} is of class {named} by its config.json, and of class"
            f" {part.cls.__name__} by the model_index.json above it; correct the wrong one."
        )
    names, variant = weights.choose((p.name for p in part.path.iterdir()), dtype)
    if not names:
        there = sorted(p.name for p in part.path.iterdir() if weights.is_weights(p.name))
        only = f" that can be read, but only {there[0]}" if there else ""
        raise ExportError(
            f"The folder {part.path} holds no weights{only}; download its .safetensors files."
        )
    weights.check_whole(part.path, names)
    safe = names[0].endswith(".safetensors")
    checkpoint = Checkpoint.open(part.path / name for name in names) if safe else Checkpoint({})
    check_types(part, part.path / names[0], checkpoint)
    with loading(part), weights.alone(part.path, names) as path:
        network, info = _from_pretrained(part, path, checkpoint, dtype, variant)
    problem = difference(network, info, checkpoint)
    if problem is None and (lost := checkpoint.scale(network, info["unexpected_keys"], dtype)):
        problem = f"it has a scale for {lost[0]}, a name that the model does not have"
    if problem is not None:
        raise ExportError(unfit(part, part.path / names[0], problem))
    return network


def _from_pretrained(
    part: Part, path: Path, checkpoint: Checkpoint, dtype: torch.dtype, variant: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network from the folder `path`, and return it with what its library says of it."""
    # The stored type is kept, so that the file is mapped. `store_weights_in` converts it later, one
    # tensor at a time. The VAE stays float32.
    if part.name != "vae":
        dtype = checkpoint.stored_dtype or dtype
    options: dict[str, Any] = {}
    cls: Any = part.cls
    if not issubclass(part.cls, diffusers.ModelMixin):
        options["ignore_mismatched_sizes"] = True  # `difference` reports them in one sentence
    elif checkpoint.names:
        expected = weights.shapes_of(weights.empty(cls, part.folder, part.name))
        # Only equal names are compared, because diffusers renames the tensors of older files.
        if problem := weights.misfit(expected, checkpoint.shapes, names=False):
            raise ExportError(unfit(part, checkpoint.file, problem))
    loaded: tuple[nn.Module, dict[str, Any]] = cls.from_pretrained(
        str(path),
        dtype=dtype,
        variant=variant,
        use_safetensors=bool(checkpoint.names),
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    return loaded


def check_types(part: Part, file: Path, checkpoint: Checkpoint) -> None:
    """Check that the weights of a part, in `file`, are not quantised in a way that is not known."""
    if problem := checkpoint.problem():
        raise ExportError(
            f"The weights of the {part.cls.__name__} in {file} cannot be read: {problem}; give them"
            " in float32, bfloat16 or float16, as .gguf, or in ComfyUI's fp8, int8 or nvfp4."
        )


def difference(network: nn.Module, info: dict[str, Any], checkpoint: Checkpoint) -> str | None:
    """Say what diffusers and transformers only log: weights that stay random or are not used."""
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        return weights.misfit({name: tuple(expected)}, {name: tuple(found)})
    if info["missing_keys"]:
        return weights.lacking(sorted(info["missing_keys"]))
    more = set(info["unexpected_keys"]) - checkpoint.companions
    more = {name for name in more if not is_unused(network, name)}
    return weights.surplus(sorted(more)) if more else None


def is_unused(network: nn.Module, name: str) -> bool:
    """Return whether a tensor that is not one of the network's is known not to be needed."""
    if name in network.state_dict():
        return False
    computed = name in dict(network.named_buffers())  # by the model itself
    return computed or (
        not isinstance(network, diffusers.ModelMixin) and _UNUSED.fullmatch(name) is not None
    )


def unfit(part: Part, file: Path, problem: str) -> str:
    """Say that the weights in `file` are not those of the part's configuration."""
    return (
        f"The weights {file} do not fit {part.path / 'config.json'}: {problem}; give the weights"
        " and the configuration of one model."
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ExportError(f"The file {path} is missing; {AGAIN}.")
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"The file {path} cannot be read: {error}; {AGAIN}.") from error
    if not isinstance(config, dict):
        raise ExportError(f"The file {path} is not a configuration; {AGAIN}.")
    read: dict[str, Any] = config
    return read
