"""Add LoRA files to the weights of a pipeline, after checking that all of their tensors fit."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

from intaglio_export.errors import ExportError
from intaglio_export.options import Lora
from intaglio_export.sources import weights
from intaglio_export.support.messages import out_of_memory, plain
from intaglio_export.support.quiet import quiet

_ADAPTER = "intaglio"


def fuse_lora(pipeline: Any, lora: Lora, family: str) -> None:
    """Add `lora` at its scale to the weights of the pipeline's networks.

    Raises:
        ExportError: the pipeline takes no LoRA, or the file is not a LoRA that fits completely.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise ExportError(
            f"--lora {lora.file}: diffusers has no LoRA loader for {family} models; leave out"
            " --lora."
        )
    if find_spec("peft") is None:
        raise ExportError("--lora needs the package peft; install it (pip install peft).")
    if not lora.file.is_file():
        raise ExportError(f"The LoRA {lora.file} does not exist.")
    if any("dora_scale" in name for name in weights.shapes(lora.file)):
        raise ExportError(
            f"The LoRA {lora.file} is a DoRA, which diffusers cannot load; merge it into"
            " the model with the program that trained it."
        )
    where = {"weight_name": lora.file.name, "local_files_only": True}
    try:
        with quiet(logging.ERROR):  # the checks below say what failed
            state = pipeline.lora_state_dict(str(lora.file.parent), **where)
            pipeline.load_lora_weights(str(lora.file.parent), adapter_name=_ADAPTER, **where)
    except Exception as error:  # from diffusers or peft
        if out_of_memory(error):
            raise
        raise ExportError(
            _foreign(pipeline, lora, plain(error).replace(f".{_ADAPTER}", ""))
        ) from error
    networks = {name: getattr(pipeline, name) for name in pipeline._lora_loadable_modules}
    networks = {name: network for name, network in networks.items() if network is not None}
    loaded = _loaded(networks)
    if getattr(pipeline.transformer, "_overwritten_params", None):
        raise ExportError(_foreign(pipeline, lora, "it changes the shape of the transformer"))
    stored = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if problem := _difference(stored, loaded):
        raise ExportError(_foreign(pipeline, lora, problem))
    pipeline.fuse_lora(components=list(networks), lora_scale=lora.scale, adapter_names=[_ADAPTER])
    pipeline.unload_lora_weights()


def _loaded(networks: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the LoRA's tensors in the networks, with the names of diffusers' format."""
    return {
        f"{part}.{name.replace(f'.{_ADAPTER}.', '.')}": tuple(tensor.shape)
        for part, network in networks.items()
        for name, tensor in network.named_parameters()
        if f".{_ADAPTER}." in name
    }


def _difference(stored: weights.Shapes, loaded: weights.Shapes) -> str | None:
    """Say what was not loaded from a file, which diffusers at most logs, or return None."""
    if len(stored) != len(loaded):  # counts are compared, because older formats use other names
        if strange := sorted(stored.keys() - loaded.keys()):
            return weights.surplus(strange)
        return weights.lacking(sorted(loaded.keys() - stored.keys()))
    return weights.misfit(loaded, stored, names=False)


def _foreign(pipeline: Any, lora: Lora, why: str) -> str:
    return (
        f"The LoRA {lora.file} does not fit this {type(pipeline.transformer).__name__}: {why};"
        " give one that was trained on this model."
    )
