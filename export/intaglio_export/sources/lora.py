"""Add LoRA files to the weights of a pipeline, after checking that all of their tensors arrive."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from intaglio_export.errors import ExportError
from intaglio_export.options import Lora
from intaglio_export.precision import store_weights_in
from intaglio_export.sources import lora_names, weights
from intaglio_export.sources.checkpoint import Checkpoint
from intaglio_export.sources.lora_names import Tensors
from intaglio_export.support.messages import out_of_memory
from intaglio_export.support.quiet import quiet

# The name of an adapter that is only loaded to see where the tensors of a file go.
_MARKS = "marks"
# Numbers are marked by their digits to this base, because peft rounds a LoRA to the type of the
# model, and bfloat16 holds every integer only up to 256.
_BASE = 255
# Rounding to bfloat16 changes a layer's norm by less than this.
_SAME_NORM = 0.01


def fuse_loras(
    pipeline: Any, loras: Sequence[Lora], family: str, dtype: torch.dtype, text_encoders: str
) -> list[str]:
    """Add LoRAs at their scales to the weights of the pipeline's networks.

    The sums are made in float32. The changed weights of the transformer then have the type
    `dtype`, and the text encoders are float32. `text_encoders` is a value of
    `options.TextEncoders`.

    Returns remarks for the user.

    Raises:
        ExportError: the pipeline takes no LoRA, or a file is not a LoRA of which everything that
            can change a picture is added.
    """
    if not loras:
        return []
    if not hasattr(pipeline, "load_lora_weights"):
        raise ExportError(
            f"--lora {loras[0].file}: diffusers has no LoRA loader for {family} models; leave out"
            " --lora."
        )
    if find_spec("peft") is None:
        raise ExportError("--lora needs the package peft; install it (pip install peft).")
    networks = _networks(pipeline)
    for name, network in networks.items():
        if name != "transformer":  # diffusers would round the LoRA to the encoder's type
            store_weights_in(network, torch.float32)
    remarks = []
    adapters = [f"lora{number}" for number in range(len(loras))]
    for lora, adapter in zip(loras, adapters, strict=True):
        remarks += _load(pipeline, lora, adapter, text_encoders)
    pipeline.set_adapters(adapters, [lora.scale for lora in loras])
    for name, network in networks.items():
        for _, layer in _lora_layers(network):
            store_weights_in(layer, torch.float32)
            layer.merge(adapter_names=adapters)
            store_weights_in(
                layer.get_base_layer(), dtype if name == "transformer" else torch.float32
            )
    pipeline.unload_lora_weights()
    return remarks


def _networks(pipeline: Any) -> dict[str, Any]:
    """Return the networks that diffusers adds LoRAs to, by name."""
    found = {name: getattr(pipeline, name) for name in pipeline._lora_loadable_modules}
    return {name: network for name, network in found.items() if network is not None}


def _lora_layers(network: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _load(pipeline: Any, lora: Lora, adapter: str, text_encoders: str) -> list[str]:
    """Load a file as an adapter, and return remarks about tensors that were left out.

    Raises:
        ExportError: a tensor that can change a picture was left out.
    """
    tensors = _read(lora.file)
    if size := lora_names.wrong_size(tensors, pipeline):
        raise ExportError(lora_names.foreign(lora.file, pipeline, size))
    parts = {name: lora_names.absent_part(name, pipeline, text_encoders) for name in tensors}
    kept = {name: tensor for name, tensor in tensors.items() if parts[name] is None}
    absent = {name: part for name, part in parts.items() if part is not None}
    if absent and not kept:
        only = " and ".join(sorted(set(absent.values())))
        raise ExportError(
            f"The LoRA {lora.file} is for {only} only, and the model is exported without that;"
            " leave this --lora out."
        )
    with _holding(lora.file, kept) as file:
        _load_whole(pipeline, file, lora.file, kept, adapter)
    return [
        f"The layers of {lora.file} for {part} were left out, because the model is exported"
        " without it."
        for part in sorted({absent[name] for name in lora_names.effective(tensors, absent)})
    ]


def _read(file: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a LoRA.

    Raises:
        ExportError: the file cannot be read, or diffusers reads no file of its kind.
    """
    if not file.is_file():
        raise ExportError(f"The LoRA {file} does not exist.")
    checkpoint = Checkpoint(weights.header(file))
    if file.suffix != ".safetensors":
        raise ExportError(
            f"The name of the LoRA {file} does not end in .safetensors, so diffusers would"
            " read it as another format; rename it."
        )
    if problem := checkpoint.problem():
        raise ExportError(
            f"The LoRA {file} cannot be read: {problem}; give it in float32, bfloat16 or float16."
        )
    tensors = checkpoint.read(torch.float32)
    if not tensors:
        raise ExportError(f"The LoRA {file} holds no tensors; {weights.AGAIN}.")
    if broken := sorted(name for name, t in tensors.items() if not t.isfinite().all()):
        raise ExportError(
            f"The LoRA {file} holds values that are not finite ({broken[0]}); train it again"
            " or give an earlier state of it."
        )
    if reason := lora_names.unreadable(tensors):
        raise ExportError(f"The LoRA {file} {reason}.")
    return tensors


@contextmanager
def _holding(file: Path, tensors: dict[str, torch.Tensor]) -> Iterator[Path]:
    """Yield a LoRA, or a copy if it holds more than `tensors`, or fp8 ones.

    diffusers fails at layers for a part that is absent, and at fp8. It reads the alphas that are in
    the metadata of a file.
    """
    stored = weights.header(file)
    plain = all(entry.dtype in weights.STORED for entry in stored.values())
    if plain and stored.keys() == tensors.keys():
        yield file
        return
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / file.name, metadata)
        yield Path(folder) / file.name


def _load_whole(pipeline: Any, file: Path, named: Path, tensors: Tensors, adapter: str) -> None:
    """Load `file`, which holds `tensors`, and check that all of them have arrived.

    `named` is the file that messages name.

    Raises:
        ExportError: a tensor that can change a picture was left out.
    """
    where = {"weight_name": file.name, "local_files_only": True}
    networks = _networks(pipeline)
    try:
        with quiet(logging.ERROR):  # the checks below say what failed
            arrived = _arrived(pipeline, networks, tensors)
            pipeline.load_lora_weights(str(file.parent), adapter_name=adapter, **where)
            state = pipeline.lora_state_dict(str(file.parent), **where)
            _restore(pipeline.transformer, adapter, state)
    except Exception as error:  # from diffusers or peft
        if out_of_memory(error):
            raise
        raise ExportError(lora_names.refusal(named, pipeline, tensors, error)) from error
    if getattr(pipeline.transformer, "_overwritten_params", None):
        raise ExportError(f"The LoRA {named} {lora_names.CONTROL}.")
    names = list(tensors)
    found = {names[n] for key in _held(networks, adapter) for n in arrived.get(key, ())}
    found -= lora_names.unpaired(tensors)
    lost = lora_names.effective(tensors, tensors.keys() - found)
    lost |= _unscaled(tensors, arrived, networks, adapter)
    if lost:
        kept = {name: tensors[name] for name in sorted(lost)}
        raise ExportError(lora_names.refusal(named, pipeline, kept, partly=bool(found)))


def _restore(transformer: Any, adapter: str, state: Tensors) -> None:
    """Give an adapter the values of the file, which peft has rounded to the type of the model.

    Raises:
        KeyError: a value is not in the file.
    """
    for name, layer in _lora_layers(transformer):
        for half, matrices in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            if adapter not in matrices:
                continue
            for kind, _ in list(matrices[adapter].named_parameters()):
                value = state[f"transformer.{name}.{half}.{kind}"].float()
                setattr(matrices[adapter], kind, torch.nn.Parameter(value, requires_grad=False))


def _held(networks: dict[str, Any], adapter: str) -> dict[tuple[str, str], torch.Tensor]:
    """Return the parameters of an adapter, by network and by their names without the adapter's.

    Those on the meta device are left out, where peft leaves what a file lacks.
    """
    return {
        (part, name.replace(f".{adapter}", "")): parameter.detach()
        for part, network in networks.items()
        for name, parameter in network.named_parameters()
        if adapter in name.split(".") and not parameter.is_meta
    }


# The numbers of the file's tensors by the keys of `_held`.
Arrived = dict[tuple[str, str], set[int]]


def _arrived(pipeline: Any, networks: dict[str, Any], tensors: Tensors) -> Arrived:
    """Find out where the tensors of a LoRA go, by loading one whose values are their numbers.

    Names do not tell it, because diffusers reads many formats, and renames and splits layers.
    """
    rows: dict[tuple[str, str], torch.Tensor] = {}
    place = 1
    while place <= len(tensors):
        pipeline.load_lora_weights(_marked(tensors, place), adapter_name=_MARKS)
        for key, parameter in _held(networks, _MARKS).items():
            digits = parameter.reshape(len(parameter), -1)[:, 0].double()
            rows[key] = rows.get(key, 0) + place * (digits - 1)
        pipeline.delete_adapters(_MARKS)
        place *= _BASE
    return {
        key: {int(number) for number in set(found.tolist()) if number >= 0}
        for key, found in rows.items()
    }


def _marked(tensors: Tensors, place: int) -> dict[str, torch.Tensor]:
    """Return a LoRA in which every value is a digit of the number of its tensor, plus 1.

    The alphas are such that nothing is scaled.
    """
    ranks = {
        layer.alpha: tensors[layer.down].shape[0] for layer in lora_names.layers(tensors.keys())
    }
    return {
        name: torch.full(
            tensor.shape,
            float(ranks.get(name, 1) if name.endswith("alpha") else number // place % _BASE + 1),
        )
        for number, (name, tensor) in enumerate(tensors.items())
    }


def _unscaled(
    tensors: Tensors, arrived: Arrived, networks: dict[str, Any], adapter: str
) -> set[str]:
    """Return the alphas that were not applied: the layer's change has another norm than it says."""
    names = list(tensors)
    squares: dict[str, float] = {}
    for part, network in networks.items():
        for name, layer in _lora_layers(network):
            if adapter not in layer.lora_A:
                continue
            for number in arrived.get((part, f"{name}.lora_B.weight"), ()):
                down, up = (half[adapter].weight for half in (layer.lora_A, layer.lora_B))
                norm = layer.scaling[adapter] * _norm(up, down)
                squares[names[number]] = squares.get(names[number], 0.0) + norm**2
    unscaled = set()
    for layer in lora_names.layers(tensors.keys()):
        if layer.alpha is None or layer.up not in squares:
            continue
        down, up = tensors[layer.down], tensors[layer.up]
        expected = abs(float(tensors[layer.alpha])) / down.shape[0] * _norm(up, down)
        if not math.isclose(math.sqrt(squares[layer.up]), expected, rel_tol=_SAME_NORM):
            unscaled.add(layer.alpha)
    return unscaled


def _norm(up: torch.Tensor, down: torch.Tensor) -> float:
    """Return the Frobenius norm of the product `up @ down`, which is not computed itself."""
    up, down = (half.detach().double().flatten(1) for half in (up, down))
    return math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))
