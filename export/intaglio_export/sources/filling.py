"""Make the network of a part's configuration, and give it the tensors of a file one at a time.

This reads what diffusers and transformers load in no other way: parts of single files, and folders
with weights in packed formats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from torch import nn

from intaglio_export.errors import ExportError
from intaglio_export.sources import gguf_file, weights
from intaglio_export.sources.checkpoint import Checkpoint
from intaglio_export.sources.parts import Part, check_types, is_unused
from intaglio_export.support.messages import out_of_memory, plain

_DIFFUSERS = ("transformer_blocks.", "single_transformer_blocks.")
# What stands before all names of CLIP and of language models, or does not.
_BASES = ("text_model.", "model.")


def fill(file: Path, part: Part, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """Make the network of `part` from the tensors of `checkpoint`, which are in `file`.

    Quantised weights have the type `dtype`, and others the type that they are stored in.

    Raises:
        ExportError: they are not exactly the tensors of such a network.
    """
    network = weights.empty(part.cls, part.folder, part.name)
    language: Any = getattr(network, "model", None)
    if file.suffix == gguf_file.SUFFIX and hasattr(language, "visual"):
        language.visual = None  # llama.cpp has it in another file, and no prompt needs it
    expected = weights.shapes_of(network)
    state = checkpoint.read(dtype)
    if not isinstance(network, diffusers.ModelMixin):
        state = _encoder(file, part, network, state)
    elif state.keys() != expected.keys():
        state = converted(file, part, state, dict(network.config))
    if file.suffix == gguf_file.SUFFIX:
        state = {name: _widened(tensor, expected.get(name)) for name, tensor in state.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if problem := weights.misfit(expected, found):
        raise ExportError(unlike(file, part, problem))
    if part.name == "vae":
        state = {name: tensor.float() for name, tensor in state.items()}
    network.load_state_dict(state, assign=True)
    if not isinstance(network, diffusers.ModelMixin):
        network.tie_weights()  # type: ignore[operator]
    return network


def load_packed(part: Part, dtype: torch.dtype) -> nn.Module | None:
    """Load a part whose folder holds weights in a packed format, or else return None.

    Raises:
        ExportError: the weights cannot be read, or are not those of the part.
    """
    there = sorted(p.name for p in part.path.iterdir()) if part.path.is_dir() else []
    names, _ = weights.choose(there, dtype)
    packed = [name for name in there if name.endswith(gguf_file.SUFFIX)]
    if names:
        weights.check_whole(part.path, names)
    elif len(packed) > 1:
        raise ExportError(
            f"The folder {part.path} holds several {gguf_file.SUFFIX} files, {packed[0]} and"
            f" {packed[1]}; leave one there."
        )
    files = [part.path / name for name in names or packed]
    if not files or files[0].suffix == ".bin" or (checkpoint := Checkpoint.open(files)).in_place:
        return None
    check_types(part, files[0], checkpoint)
    return fill(files[0], part, checkpoint, dtype)


def converted(
    file: Path, part: Part, state: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
    """Convert a transformer or a VAE to diffusers' format. This removes tensors from `state`.

    Raises:
        ExportError: `state`, read from `file`, is not exactly such a network.
    """
    if any(key.startswith(_DIFFUSERS) for key in state):
        return state  # the names are diffusers', but some are missing
    known = SINGLE_FILE_LOADABLE_CLASSES.get(part.cls.__name__)
    if known is None:
        way_out = "take its tensors out of the file, so that the one of --config is used"
        raise ExportError(unlike(file, part, "diffusers cannot convert it", way_out))
    try:
        made: dict[str, Any] = known["checkpoint_mapping_fn"](checkpoint=state, config=config)
    except KeyError as error:
        raise ExportError(unlike(file, part, f"it lacks {error.args[0]}")) from error
    except IndexError as error:
        raise ExportError(unlike(file, part, "it has no blocks of such a model")) from error
    except (ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise ExportError(unlike(file, part, plain(error))) from error
    # The converter of VAEs leaves the tensors in `state` that it used; they share their memory.
    used = {tensor.data_ptr() for tensor in made.values()}
    if left := sorted(name for name, tensor in state.items() if tensor.data_ptr() not in used):
        raise ExportError(unlike(file, part, f"it holds more than such a model ({left[0]})"))
    return made


def unlike(file: Path, part: Part, why: str, way_out: str | None = None) -> str:
    """Say that `file` does not hold the weights of the part's configuration."""
    if way_out is None:
        alone = file.parent != part.path
        way_out = (
            "give the model's own folder with --config"
            if alone
            else "give the weights and the configuration of one model"
        )
    return (
        f"The file {file} does not hold the {part.cls.__name__} that"
        f" {part.path / 'config.json'} describes: {why}; {way_out}."
    )


def _encoder(file: Path, part: Part, network: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Give the tensors of a text encoder the names that transformers has for them."""
    expected = weights.shapes_of(network)
    if file.suffix == gguf_file.SUFFIX:
        state = gguf_file.as_transformers(file, state, expected)
    for base in _BASES:
        if not any(name.startswith(base) for name in expected):
            state = {name.removeprefix(base): tensor for name, tensor in state.items()}
    for copy, original in dict(getattr(network, "_tied_weights_keys", None) or {}).items():
        if {copy, original} & state.keys():
            state[original] = state.get(original, state.get(copy))
            state[copy] = state[original]
    if "text_projection.weight" in expected and part.name == "text_encoder":
        # SD3 takes the pooled output of CLIP-L before its projection. diffusers does this too.
        width = network.config.hidden_size  # type: ignore[union-attr]
        state["text_projection.weight"] = torch.eye(width)  # type: ignore[arg-type]
    return {name: tensor for name, tensor in state.items() if not is_unused(network, name)}


def _widened(tensor: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    """Give back the leading dimensions of 1 that llama.cpp leaves out."""
    if shape is not None and tensor.shape != shape:
        missing = len(shape) - tensor.ndim
        if missing > 0 and shape == (*[1] * missing, *tensor.shape):
            return tensor.reshape(shape)
    return tensor
