"""Load one .safetensors file: a transformer or a whole pipeline, in any format diffusers reads.

The configuration and all parts that the file lacks come from a pipeline's folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import safe_open

from intaglio_export.errors import ExportError
from intaglio_export.sources import weights
from intaglio_export.sources.messages import out_of_memory, plain
from intaglio_export.sources.parts import Part
from intaglio_export.sources.pipeline_folder import PipelineFolder, load_pipeline

_TRANSFORMER = "model.diffusion_model."
_VAE = ("first_stage_model.", "vae.")
_ENCODERS = "text_encoders."
# Names of weights, and of what quantized checkpoints store beside them.
_WEIGHT = re.compile(r"(weight|bias|scale|scaled_fp8|absmax|quant_map|quant_state.*)$")


def held_parts(file: Path, folder: PipelineFolder) -> frozenset[str]:
    """Return the parts of the pipeline whose weights are in `file`, by its header.

    Raises:
        ExportError: the file is cut short, or diffusers cannot read single files of this family.
    """
    if folder.parts["transformer"].cls.__name__ not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ExportError(
            f"diffusers cannot read a single file such as {file} for {folder.adapter.family}"
            " models; give a diffusers folder or a Hub name."
        )
    keys = weights.shapes(file)
    held = {"transformer"}
    if any(key.startswith(_VAE) for key in keys):
        held.add("vae")
    clips = iter(("clip_l.", "clip_g."))
    for name in folder.adapter.text_encoders:
        if (part := folder.parts.get(name)) is None:
            continue
        kind = "t5xxl." if _is_t5(part) else next(clips)
        if any(key.startswith(f"{_ENCODERS}{kind}") for key in keys):
            held.add(name)
    return frozenset(held)


def load_single_file(
    file: Path, folder: PipelineFolder, held: frozenset[str], dtype: torch.dtype
) -> Any:
    """Load the pipeline of `folder` with the parts `held` from `file`, converted by diffusers.

    Raises:
        ExportError: the weights in the file do not fit the folder's configuration.
    """
    given = {"transformer": _transformer(file, folder.parts["transformer"], dtype)}
    if "vae" in held:
        given["vae"] = _vae(file, folder.parts["vae"])
    return load_pipeline(folder, dtype, given | _encoders(file, folder, held, dtype))


def license_in(file: Path) -> str | None:
    """Return the licence in the file's metadata (Stability model specification), or None."""
    with safe_open(file, "pt") as opened:
        return (opened.metadata() or {}).get("modelspec.license")


def _read(file: Path, prefixes: tuple[str, ...] | None) -> dict[str, torch.Tensor]:
    """Read the tensors under `prefixes`, or those of a transformer if that is None."""
    with safe_open(file, "pt") as opened:
        keys = list(opened.keys())
        if prefixes is None and any(key.startswith(_TRANSFORMER) for key in keys):
            prefixes = (_TRANSFORMER,)
        if prefixes is None:
            keys = [key for key in keys if not key.startswith((*_VAE, _ENCODERS))]
        else:
            keys = [key for key in keys if key.startswith(prefixes)]
        return {key: opened.get_tensor(key) for key in keys}


def _transformer(file: Path, part: Part, dtype: torch.dtype) -> Any:
    expected = weights.empty_like(part.cls, part.folder, part.name)
    state = _read(file, None)
    if state.keys() != expected.keys():
        state = converted(file, part, state)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if problem := weights.misfit(expected, found):
        raise ExportError(_unlike(file, part, problem))
    cls: Any = part.cls
    return cls.from_single_file(
        state,
        config=str(part.folder),
        subfolder=part.name,
        local_files_only=True,
        dtype=weights.stored_dtype(file) or dtype,
    )


def converted(file: Path, part: Part, state: dict[str, Any]) -> dict[str, Any]:
    """Convert a transformer to diffusers' format. The converter removes tensors from `state`.

    Raises:
        ExportError: `state`, read from `file`, is not exactly a transformer of that class.
    """
    if any(key.startswith(("transformer_blocks.", "single_transformer_blocks.")) for key in state):
        return state  # the names are diffusers', but some are missing
    try:
        convert = SINGLE_FILE_LOADABLE_CLASSES[part.cls.__name__]["checkpoint_mapping_fn"]
        made: dict[str, Any] = convert(checkpoint=state)
    except KeyError as error:
        raise ExportError(_unlike(file, part, f"it lacks {error.args[0]}")) from error
    except IndexError as error:
        raise ExportError(_unlike(file, part, "it has no blocks of such a model")) from error
    except (ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise ExportError(_unlike(file, part, plain(error))) from error
    if left := sorted(key for key in state if _WEIGHT.search(key)):
        quantized = any("scale" in key or "absmax" in key for key in left)
        why = "it is quantized" if quantized else "it holds more than such a model"
        raise ExportError(_unlike(file, part, f"{why} ({left[0]})"))
    return made


def _vae(file: Path, part: Part) -> Any:
    try:
        vae = AutoencoderKL.from_single_file(
            _read(file, _VAE),
            config=str(part.folder),
            subfolder=part.name,
            local_files_only=True,
            dtype=torch.float32,
        )
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ExportError(_unlike(file, part, plain(error))) from error
    return _complete(file, part, vae)


def _encoders(
    file: Path, folder: PipelineFolder, held: frozenset[str], dtype: torch.dtype
) -> dict[str, Any]:
    """Load the text encoders that the file holds."""
    from diffusers.loaders import single_file_utils

    encoders = {}
    for name in sorted(held & folder.parts.keys()):
        if not name.startswith("text_encoder"):
            continue
        part = folder.parts[name]
        load = (
            single_file_utils.create_diffusers_t5_model_from_checkpoint
            if _is_t5(part)
            else single_file_utils.create_diffusers_clip_model_from_ldm
        )
        try:
            encoder = load(
                part.cls,
                _read(file, (f"{_ENCODERS}t5" if _is_t5(part) else f"{_ENCODERS}clip",)),
                subfolder=name,
                config=str(folder.path),
                torch_dtype=dtype,
                local_files_only=True,
            )
        except Exception as error:
            if out_of_memory(error):
                raise
            raise ExportError(_unlike(file, part, plain(error))) from error
        encoders[name] = _complete(file, part, encoder)
    return encoders


def _is_t5(part: Part) -> bool:
    return part.cls.__name__.startswith("T5")


def _complete(file: Path, part: Part, network: Any) -> Any:
    """Return `network` if the file held all of it; diffusers leaves other tensors empty."""
    empty = sorted(name for name, tensor in network.state_dict().items() if tensor.is_meta)
    if empty:
        raise ExportError(_unlike(file, part, weights.lacking(empty)))
    return network


def _unlike(file: Path, part: Part, why: str) -> str:
    return (
        f"The file {file} does not hold the {part.cls.__name__} that"
        f" {part.path / 'config.json'} describes: {why}; give the model's own"
        " folder with --config."
    )
