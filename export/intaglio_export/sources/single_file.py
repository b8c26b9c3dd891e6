"""Load one .safetensors file: a transformer or a whole pipeline, in any format diffusers reads.

The configuration and all parts that the file lacks come from a pipeline's folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import safe_open
from torch import nn

from intaglio_export.errors import ExportError
from intaglio_export.sources import weights
from intaglio_export.sources.checkpoint import Checkpoint
from intaglio_export.sources.parts import Part, check_types, held_in, is_unused
from intaglio_export.sources.pipeline_folder import PipelineFolder, load_pipeline
from intaglio_export.support.messages import out_of_memory, plain

# The names of a transformer's blocks, by its class where other classes have such names elsewhere.
_BLOCKS = {"ZImageTransformer2DModel": "layers"}
_OTHER_BLOCKS = "double_blocks|joint_blocks|(?:single_)?transformer_blocks"
_DIFFUSERS = ("transformer_blocks.", "single_transformer_blocks.")
_VAE = ("first_stage_model.", "vae.")
_ENCODERS = "text_encoders."
_ENCODER = re.compile(r"text_encoders\.\w+\.transformer\.")
_LORA = re.compile(r"\.lora_(?:A|B|up|down)\.|\.hada_w|\.lokr_w")
# What ComfyUI writes beside the text encoders, and a noise schedule, which the pipeline has.
_UNUSED = re.compile(
    r"text_encoders\.\w+\.(?:logit_scale|text_projection|spiece_model)|(?:.*\.)?(?:log_)?sigmas"
)


def held_parts(file: Path, folder: PipelineFolder) -> frozenset[str]:
    """Return the parts of the pipeline whose weights are in `file`, by its header.

    Raises:
        ExportError: the file is cut short, no part of the pipeline has one of its tensors, or
            diffusers cannot read single files of this family.
    """
    return frozenset(_held(file, folder))


def load_single_file(file: Path, folder: PipelineFolder, dtype: torch.dtype) -> Any:
    """Load the pipeline of `folder` with the parts that `file` holds, converted by diffusers.

    Raises:
        ExportError: the weights in the file do not fit the folder's configuration.
    """
    held = _held(file, folder)
    for name, checkpoint in held.items():
        check_types(folder.parts[name], file, checkpoint)
    given = {
        name: _load(file, folder.parts[name], checkpoint, held_in(name, dtype))
        for name, checkpoint in held.items()
    }
    return load_pipeline(folder, dtype, given)


def license_in(file: Path) -> str | None:
    """Return the licence in the file's metadata (Stability model specification), or None."""
    with safe_open(file, "pt") as opened:
        return (opened.metadata() or {}).get("modelspec.license")


def _held(file: Path, folder: PipelineFolder) -> dict[str, Checkpoint]:
    """Return what `file` holds of each part, under names without their prefixes."""
    transformer = folder.parts["transformer"]
    if transformer.cls.__name__ not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ExportError(
            f"diffusers cannot read a single file such as {file} for {folder.adapter.family}"
            " models; give a diffusers folder or a Hub name."
        )
    whole = Checkpoint.open([file]).without(lambda name: _UNUSED.fullmatch(name) is not None)
    beside = whole.without(lambda name: name.startswith((*_VAE, _ENCODERS)))
    prefixes = {"transformer": [_prefix(file, transformer, beside.names)], "vae": [*_VAE]}
    encoders = _encoder_prefixes(folder, whole.names)
    prefixes |= {name: [prefix] for name, prefix in encoders.items()}
    held: dict[str, Checkpoint] = {}
    left = set(whole.names)
    for name, starts in prefixes.items():
        for prefix in starts:
            found = (beside if name == "transformer" else whole).under(prefix)
            if name == "transformer" or found.names:
                held[name] = found
                left -= {prefix + key for key in found.names}
    if set(folder.adapter.text_encoders) - folder.parts.keys():  # --text-encoders leaves some out
        left = {name for name in left if not name.startswith(_ENCODERS)}
    if left:
        raise ExportError(_unlike(file, transformer, f"it holds more ({min(left)})"))
    return held


def _prefix(file: Path, part: Part, names: set[str]) -> str:
    """Return what stands before the names of the transformer's tensors."""
    if any(_LORA.search(name) for name in names):
        raise ExportError(
            f"The file {file} is a LoRA, not a model; give the model that it was trained on, and"
            " the file with --lora."
        )
    # What stands before the name of a transformer's block is the prefix of the whole transformer,
    # such as "model.diffusion_model." (ComfyUI), "transformer." (diffusers) or "module." (torch).
    blocks = _BLOCKS.get(part.cls.__name__, _OTHER_BLOCKS)
    block = re.compile(rf"(?P<prefix>(?:.*?\.)?)(?:{blocks})\.\d+\.")
    prefixes = sorted({found["prefix"] for found in map(block.match, names) if found})
    if not prefixes:
        why = "it has no blocks of such a model" + (f", but {min(names)}" if names else "")
        raise ExportError(_unlike(file, part, why, "give a file that holds the transformer"))
    if len(prefixes) > 1:
        both = " and ".join(map(repr, prefixes[:2]))
        raise ExportError(
            f"The file {file} holds several transformers, whose names start with {both}; give a"
            " file that holds one."
        )
    return prefixes[0]


def _encoder_prefixes(folder: PipelineFolder, names: set[str]) -> dict[str, str]:
    """Return the prefix of each text encoder in a file that ComfyUI wrote, of tensors `names`.

    A language model stands alone there, and is called by its kind and size, as qwen3_4b.
    """
    clips = iter(("clip_l", "clip_g"))
    present = [folder.parts[n] for n in folder.adapter.text_encoders if n in folder.parts]
    if len(present) == 1 and not present[0].cls.__name__.startswith(("CLIP", "T5")):
        found = {match[0] for match in map(_ENCODER.match, names) if match}
        return {present[0].name: found.pop()} if len(found) == 1 else {}
    kinds = {part.name: "t5xxl" if _is_t5(part) else next(clips) for part in present}
    return {name: f"{_ENCODERS}{kind}.transformer." for name, kind in kinds.items()}


def _load(file: Path, part: Part, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """Make the network of the part's configuration with tensors of the file, as they are stored."""
    network = weights.empty(part.cls, part.folder, part.name)
    expected = weights.shapes_of(network)
    state = checkpoint.read(dtype)
    if not isinstance(network, diffusers.ModelMixin):
        state = _encoder(part, network, state)
    elif state.keys() != expected.keys():
        state = converted(file, part, state, dict(network.config))
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if problem := weights.misfit(expected, found):
        raise ExportError(_unlike(file, part, problem))
    if part.name == "vae":
        state = {name: tensor.float() for name, tensor in state.items()}
    network.load_state_dict(state, assign=True)
    if not isinstance(network, diffusers.ModelMixin):
        network.tie_weights()  # type: ignore[operator]
    return network


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
        raise ExportError(_unlike(file, part, "diffusers cannot convert it", way_out))
    try:
        made: dict[str, Any] = known["checkpoint_mapping_fn"](checkpoint=state, config=config)
    except KeyError as error:
        raise ExportError(_unlike(file, part, f"it lacks {error.args[0]}")) from error
    except IndexError as error:
        raise ExportError(_unlike(file, part, "it has no blocks of such a model")) from error
    except (ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise ExportError(_unlike(file, part, plain(error))) from error
    # The converter of VAEs leaves the tensors in `state` that it used; they share their memory.
    used = {tensor.data_ptr() for tensor in made.values()}
    if left := sorted(name for name, tensor in state.items() if tensor.data_ptr() not in used):
        raise ExportError(_unlike(file, part, f"it holds more than such a model ({left[0]})"))
    return made


def _encoder(part: Part, network: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Give the tensors of a text encoder the names that transformers has for them."""
    for inner in ("text_model", "model"):
        if not hasattr(network, inner):
            state = {name.removeprefix(f"{inner}."): tensor for name, tensor in state.items()}
    for copy, original in dict(getattr(network, "_tied_weights_keys", None) or {}).items():
        if {copy, original} & state.keys():
            state[original] = state.get(original, state.get(copy))
            state[copy] = state[original]
    if "text_projection.weight" in weights.shapes_of(network) and part.name == "text_encoder":
        # SD3 takes the pooled output of CLIP-L before its projection. diffusers does this too.
        width = network.config.hidden_size  # type: ignore[union-attr]
        state["text_projection.weight"] = torch.eye(width)  # type: ignore[arg-type]
    return {name: tensor for name, tensor in state.items() if not is_unused(network, name)}


def _is_t5(part: Part) -> bool:
    return part.cls.__name__.startswith("T5")


def _unlike(
    file: Path, part: Part, why: str, way_out: str = "give the model's own folder with --config"
) -> str:
    return (
        f"The file {file} does not hold the {part.cls.__name__} that"
        f" {part.path / 'config.json'} describes: {why}; {way_out}."
    )
