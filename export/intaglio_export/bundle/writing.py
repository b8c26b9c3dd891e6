"""Write the graphs of a bundle, one network after the other, and verify each graph.

The peak memory stays near one copy of the weights: torch's outputs for the verification are
computed first, and torch's weights are freed before ONNX Runtime opens the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import nn

from intaglio_export.bundle.verify import Errors, reference, verify
from intaglio_export.graph_specs import ExportUnit
from intaglio_export.passes.add_op_function import add_op_function
from intaglio_export.passes.cast_matmuls_to_float32 import cast_matmuls_to_float32
from intaglio_export.passes.decompose import decompose
from intaglio_export.passes.floor_division import floor_division
from intaglio_export.passes.multi_head_attention import multi_head_attention
from intaglio_export.passes.name_axes import name_axes
from intaglio_export.passes.quantize_dequantize import SCHEMES, quantize_dequantize
from intaglio_export.passes.quantize_weights import quantize_embedding, quantize_weights
from intaglio_export.passes.remove_noop_squeeze import remove_noop_squeeze
from intaglio_export.passes.share_weights import share_weights
from intaglio_export.passes.simulate_fp4 import simulate_fp4
from intaglio_export.passes.split_in_groups import split_in_groups
from intaglio_export.passes.strip_metadata import strip_metadata
from intaglio_export.passes.transpose_weights import transpose_weights
from intaglio_export.passes.widen_weights import widen_weights
from intaglio_export.support.guard import running
from intaglio_export.support.memory import collect, collecting_on_demand
from intaglio_export.tracing.trace import trace

# A callback that gets the current step as a text and the share of the work that is done.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Stage:
    """A network and the graphs made of it. Graphs in one folder share one weights file."""

    network: nn.Module
    units: Sequence[ExportUnit]


def write_stages(stages: Sequence[Stage], work: Path, progress: Progress) -> dict[str, Errors]:
    """Write and verify all graphs under `work`. Returns the relative errors of each path.

    The network of each stage has no weights afterwards.

    Raises:
        ExportError: a graph differs from its torch module.
    """
    with collecting_on_demand():
        return _write_stages(stages, work, progress)


def _write_stages(stages: Sequence[Stage], work: Path, progress: Progress) -> dict[str, Errors]:
    errors: dict[str, Errors] = {}
    total = sum(len(stage.units) for stage in stages)
    for stage in stages:
        name = type(stage.network).__name__
        progress(f"Running the {name}", len(errors) / total)
        with running(f"The {name}"):
            references = [reference(unit) for unit in stage.units]
        for _, group in groupby(stage.units, key=lambda unit: Path(unit.spec.path).parent):
            _write_folder(list(group), work, lambda what: progress(what, len(errors) / total))
        release(stage.network)
        for unit, expected in zip(stage.units, references, strict=True):
            progress(f"Verifying {unit.spec.path}", (len(errors) + 0.5) / total)
            errors[unit.spec.path] = verify(unit.spec, work, expected)
            if unit.spec.simulated:
                for file in work.glob(f"{unit.spec.simulated}*"):
                    file.unlink()
    return errors


def release(network: nn.Module) -> None:
    """Free the memory of all weights of `network`.

    The tensors are emptied in place, because torch's exporter keeps references to them, and one
    reference is enough to keep a whole mapped file.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        for held in (tensor, tensor._base):  # a view keeps its base alive
            if held is not None:
                held.data = held.new_empty(0)
    collect()


def _write_folder(units: Sequence[ExportUnit], work: Path, progress: Callable[[str], None]) -> None:
    """Trace, edit and save the graphs of one folder, which share one weights file."""
    models = []
    for unit in units:
        progress(f"Tracing {unit.spec.path}")
        model = make_graph(unit)
        if unit.spec.quantize and unit.spec.dtype == torch.float32:
            widen_weights(model)
        transpose_weights(model)
        if unit.spec.quantize:
            progress(f"Quantising {unit.spec.path}")
            quantize = quantize_dequantize if unit.spec.quantize in SCHEMES else quantize_weights
            quantize(model, unit.spec.quantize, unit.spec.exact)
            quantize_embedding(model)
        models.append(model)
    folder = (work / units[0].spec.path).parent
    folder.mkdir(parents=True, exist_ok=True)
    share_weights(models, folder)
    for unit, model in zip(units, models, strict=True):
        save_graph(model, work / unit.spec.path)
        if unit.spec.decomposed:
            decomposed = ir.load(work / unit.spec.path)  # a clone would share types with `model`
            decompose(decomposed)
            save_graph(decomposed, work / unit.spec.decomposed)
        if unit.spec.simulated:
            simulated = ir.load(work / unit.spec.path)
            simulate_fp4(simulated)
            cast_matmuls_to_float32(simulated)
            path = work / unit.spec.simulated
            ir.save(simulated, path, external_data=f"{path.name}.data")
        if unit.spec.cpu:
            if unit.spec.dtype != torch.float32:
                cast_matmuls_to_float32(model)
            multi_head_attention(model)
            save_graph(model, work / unit.spec.cpu)


def make_graph(unit: ExportUnit) -> ir.Model:
    """Return the graph of `unit` with the op's function; its weights still belong to torch."""
    model = trace(unit)
    if any(spec.role == "mask" for spec in unit.spec.inputs):
        add_op_function(model)
    floor_division(model)
    remove_noop_squeeze(model)
    split_in_groups(model)
    name_axes(model, unit.spec)
    strip_metadata(model)
    return model


def save_graph(model: ir.Model, path: Path) -> None:
    """Save `model` and check it with ONNX's own checker."""
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
