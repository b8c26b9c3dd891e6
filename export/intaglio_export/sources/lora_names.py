"""Tell from the names of a LoRA's tensors what it is, and say what diffusers does not apply."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intaglio_export.sources import weights
from intaglio_export.support.messages import plain

Tensors = Mapping[str, torch.Tensor]

# The first of a layer's two matrices, in the spellings of all formats, and the second.
_DOWN = re.compile(r"(?<=[._])(lora_down|lora_A|down)(?=\.)")
_UPS = re.compile(r"(?<=[._])(lora_up|lora_B|up)(?=\.weight)")
_UP = {"lora_down": "lora_up", "lora_A": "lora_B", "down": "up"}
_T5 = re.compile(r"lora_te\d_encoder_block|text_encoders\.t5|text_encoder_\d\.encoder\.block")
_ENCODER = re.compile(r"lora_te\d?_|text_encoders?[._]")
_MERGE = "merge it into the model with a program that applies it, and export the merged model"
CONTROL = (
    "is a control LoRA: it changes more than weights of matrix products, and is made for a pipeline"
    " with an image as a further input, which Intaglio does not export; leave it out"
)

# Kinds of adapters that no loader of diffusers applies to the exported models.
_KINDS = {
    r"dora_scale|lora_magnitude_vector": "is a DoRA, which is no sum of a weight and a product",
    r"\.hada_": "is a LoHa of LyCORIS, which diffusers does not apply",
    r"\.lokr_": "is a LoKr of LyCORIS, which diffusers does not apply to this model",
    r"\.b?oft_": "is an OFT adapter, which diffusers does not apply",
    r"\.lora_mid\.": "is a LoCon in three parts, which diffusers does not apply",
}
# What single tensors do that diffusers leaves out.
_EXTRAS = {
    r"\.diff_b$": "changes biases",
    r"\.diff$": "changes normalisation or other weights without factors",
    r"^bundle_emb": "brings embeddings of words",
}
# Spellings of layers that diffusers does not read, with who writes them.
_SPELLINGS = {
    r"(lora_unet_|diffusion_model\.)": "as sd-scripts and ComfyUI name them",
    r"base_model\.model\.": "as peft does, which keeps alpha in adapter_config.json",
    r"lora_transformer_": "as OneTrainer names them",
    r"lycoris_": "as LyCORIS names them",
}
_PREFIXES = re.compile(
    r"(base_model[._]model[._])?"
    r"(lora_unet_|lora_transformer_|lycoris_|transformer\.|diffusion_model\.)?"
)
_SUFFIX = re.compile(r"[._](lora_\w+|lora|alpha|dora_scale|diff|diff_b|weight|bias)(\..*)?$")
_FORMAT = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"


@dataclass(frozen=True)
class Layer:
    """The names of a layer's tensors: two matrices, and the number that scales their product."""

    down: str
    up: str
    alpha: str | None


def layers(names: Iterable[str]) -> list[Layer]:
    """Find the layers of a LoRA that have both matrices."""
    known = set(names)
    found = []
    for name in sorted(known):
        if match := _DOWN.search(name):
            up = f"{name[: match.start()]}{_UP[match[1]]}{name[match.end() :]}"
            alpha = f"{name[: match.start() - 1]}.alpha"
            if up in known:
                found.append(Layer(name, up, alpha if alpha in known else None))
    return found


def unpaired(names: Iterable[str]) -> set[str]:
    """Return the matrices of layers that lack the other matrix."""
    known = set(names)
    paired = {name for layer in layers(known) for name in (layer.down, layer.up)}
    halves = {name for name in known if _DOWN.search(name) or _UPS.search(name)}
    return halves - paired


def effective(tensors: Tensors, lost: Iterable[str]) -> set[str]:
    """Return those of the tensors `lost` that would have changed a weight.

    An alpha alone changes none, and neither does a layer of which one matrix is zero.
    """
    idle = {
        name
        for layer in layers(tensors.keys())
        if not (tensors[layer.down].any() and tensors[layer.up].any())
        for name in (layer.down, layer.up)
    }
    return {
        name
        for name in lost
        if name not in idle and not name.endswith("alpha") and tensors[name].any()
    }


def absent_part(name: str, pipeline: Any, text_encoders: str) -> str | None:
    """Return what a tensor is for if the export is without that part, or None.

    `text_encoders` is a value of `options.TextEncoders`.
    """
    if _T5.match(name):
        parts = {type(part).__name__ for part in pipeline.components.values()}
        return "T5" if text_encoders == "none" or "T5EncoderModel" not in parts else None
    if text_encoders == "none" and _ENCODER.match(name):
        return "CLIP"
    if "text_projection" in name and not hasattr(pipeline.text_encoder, "text_projection"):
        return "CLIP's projection"  # the text encoder of FLUX has none
    return None


def unreadable(names: Iterable[str]) -> str | None:
    """Say what a file is that no loader of diffusers reads, and what to do, or return None."""
    for name in names:
        for pattern, what in _KINDS.items():
            if re.search(pattern, name):
                return f"{what}; {_MERGE}"
    return None


def wrong_size(tensors: Tensors, pipeline: Any) -> str | None:
    """Say which layer of a LoRA has another size than the transformer's, or return None.

    diffusers would pad the layer with zeros, or enlarge the transformer. That is what control LoRAs
    want of the first layer, which may be larger.
    """
    modules = _modules(pipeline)
    for layer in layers(tensors.keys()):
        name = _flat(layer.down)
        weight = getattr(modules.get(name), "weight", None)
        size = tensors[layer.up].shape[0], tensors[layer.down].shape[1]
        if weight is None or size == tuple(weight.shape[:2]):
            continue
        if name == "x_embedder" and size[1] > weight.shape[1]:
            continue
        ours, its = ("x".join(map(str, shape)) for shape in (weight.shape[:2], size))
        return f"{layer.down} is for a weight of {its}, and that of the model is {ours}"
    return None


def foreign(file: Path, pipeline: Any, why: str, unsure: str = "") -> str:
    """Say that a LoRA is for another model."""
    return (
        f"The LoRA {file} does not fit this {type(pipeline.transformer).__name__}{unsure}: {why};"
        " give one that was trained on this model."
    )


def refusal(
    file: Path,
    pipeline: Any,
    tensors: Tensors,
    error: BaseException | None = None,
    *,
    partly: bool = False,
) -> str:
    """Say why `tensors` of a LoRA are not applied, and what to do.

    `error` is what diffusers raised when it loaded them. `partly`: it applies others of the file.
    """
    names = list(tensors)
    start = f"The LoRA {file}"
    if any(re.search(r"\.norm_(added_)?[qk]\.", name) for name in names):
        return f"{start} {CONTROL}."
    if t5 := [name for name in names if _T5.match(name)]:
        optional = ", or export with --text-encoders no-t5" if _is_sd3(pipeline) else ""
        return (
            f"{start} has layers for the text encoder T5 ({_some(t5)}), which diffusers does not"
            f" apply; {_MERGE}{optional}."
        )
    for pattern, what in _EXTRAS.items():
        if found := [name for name in names if re.search(pattern, name)]:
            return f"{start} {what} ({_some(found)}), which diffusers does not apply; {_MERGE}."
    own = _modules(pipeline).keys() & {_flat(name) for name in names}
    ours = partly or own or (_is_sd3(pipeline) and any("joint_blocks" in name for name in names))
    for pattern, who in _SPELLINGS.items():
        if ours and (found := [name for name in names if re.match(pattern, name)]):
            return f"{start} names layers {who} ({_some(found)}), {_UNREAD}."
    if (own or not error) and (found := [name for name in names if name.endswith("alpha")]):
        return (
            f"{start} has alphas ({_some(found)}) that diffusers does not apply to it; multiply"
            " each second matrix (up or B) by alpha / rank, and leave the alphas out."
        )
    if own and not all(re.match(r"transformer\..*\.lora_[AB]\.", name) for name in names):
        return f"{start} names layers in a way of its own ({_some(names)}), {_UNREAD}."
    if half := sorted(unpaired(names)):
        return f"{start} has {half[0]} without the other matrix of that layer; {weights.AGAIN}."
    size = plain(error) if error else ""
    why = size if " in the model" in size else weights.surplus(sorted(names))
    unsure = ", or has a format that diffusers does not read" if error and not own else ""
    return foreign(file, pipeline, why, unsure)


_UNREAD = (
    "which diffusers does not read for this model; convert it to diffusers' format, in which names"
    f" look like {_FORMAT}"
)


def _is_sd3(pipeline: Any) -> bool:
    return type(pipeline.transformer).__name__.startswith("SD3")


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _flat(name: str) -> str:
    """Return the module that a tensor's name means, with `_` for every dot."""
    return _PREFIXES.sub("", _SUFFIX.sub("", name), count=1).replace(".", "_")


def _modules(pipeline: Any) -> dict[str, Any]:
    return {name.replace(".", "_"): m for name, m in pipeline.transformer.named_modules()}
