"""Trace a torch module and translate it to an ONNX model in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import onnx_ir as ir
import torch
from onnxscript.rewriter import onnx_fusions
from torch.export import Dim

from intaglio_export.graph_specs import ExportUnit, TensorSpec
from intaglio_export.passes.norms_of_one_type import norms_of_one_type
from intaglio_export.passes.transpose_weights import transposes_weight
from intaglio_export.support.patching import replaced
from intaglio_export.support.quiet import quiet
from intaglio_export.tracing.rewriting import optimize

prepared_in_place: Callable[[], AbstractContextManager[None]]
try:
    from intaglio_export.tracing.decomposition import prepared_in_place
except (ImportError, AttributeError):  # this torch has other internals and prepares programs itself
    prepared_in_place = nullcontext

# 23 keeps Attention, RMSNormalization and Gelu as single nodes.
OPSET = 23


def trace(unit: ExportUnit) -> ir.Model:
    """Return the ONNX model of `unit.module`. Its weights still refer to torch's memory.

    Raises:
        torch.onnx.OnnxExporterError: the module cannot be exported.
    """
    generator = torch.Generator().manual_seed(0)
    dims = _dims(unit)
    # Otherwise every node records where in Python it was made, and `strip_metadata` drops that.
    no_traces = replaced([(torch.fx.config, "do_not_emit_stack_traces", True)])
    with quiet(), torch.no_grad(), no_traces, prepared_in_place():
        program = torch.onnx.export(
            unit.module.eval(),
            unit.example_inputs(generator),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(tuple(_dynamic(spec, dims) for spec in unit.spec.inputs),),
            input_names=[spec.name for spec in unit.spec.inputs],
            output_names=[spec.name for spec in unit.spec.outputs],
            verbose=False,
            optimize=False,
        )
        assert program is not None
        _optimize(program.model)
    return program.model


def _optimize(model: ir.Model) -> None:
    """Optimize as torch's exporter can, but without copying transposed weights.

    `passes/transpose_weights.py` handles those.
    """
    optimize(model, lambda node: False if transposes_weight(node) else None)
    onnx_fusions.fuse(model)
    norms_of_one_type(model)


def _dims(unit: ExportUnit) -> dict[str, object]:
    """Return a torch.export dimension for each named axis of the inputs."""
    dims: dict[str, object] = {}
    for spec in unit.spec.inputs:
        for axis in spec.axes:
            if isinstance(axis, int) or axis in dims:
                continue
            multiple = unit.multiples.get(axis, 1)
            largest = unit.maxima.get(axis)
            dim = Dim(f"{axis}_units", max=largest // multiple if largest else None)
            dims[axis] = multiple * dim if multiple > 1 else dim
    return dims


def _dynamic(spec: TensorSpec, dims: dict[str, object]) -> dict[int, object]:
    return {index: dims[axis] for index, axis in enumerate(spec.axes) if isinstance(axis, str)}
