"""The graphs of the transformer in both layouts."""

from __future__ import annotations

from dataclasses import replace

import torch

from intaglio_export.adapters.base import Adapter
from intaglio_export.graph_specs import Axis, ExportUnit, GraphSpec, TensorSpec
from intaglio_export.networks.conditioning import (
    ConditioningTransformer,
    conditioning_inputs,
    conditioning_outputs,
    loop_inputs,
)
from intaglio_export.networks.forking import (
    OBSERVED,
    AnchoredTransformer,
    BaseTransformer,
    DegradedTransformer,
    ForkedTransformer,
    ObservedTransformer,
)
from intaglio_export.options import Layout


def transformer_units(
    adapter: Adapter,
    layout: Layout | str,
    block: int,
    observe: bool = False,
    anchored: bool = False,
) -> dict[str, ExportUnit]:
    """Return the graphs of `layout` by their names in the manifest.

    Both layouts have the graph `conditioning`, which computes inputs of the others. The op is after
    block `block`. The graphs of the dual layout have one kind of row, which is called `rows`. With
    `observe`, the graph that every step runs (forked or base) also outputs `hidden_states_k` and
    `gate_k` of every block k. With `anchored`, the forked graph also takes `anchor`.
    """
    channels = adapter.channels
    base = list(loop_inputs(adapter))
    to_channels = [TensorSpec("mask", (channels,)), TensorSpec("ref", (channels,))]
    branch = TensorSpec("branch", ("rows",), torch.int64)
    keep = TensorSpec("keep", ("rows", _tokens(adapter)))
    if layout == Layout.forked:
        source = TensorSpec("source", keep.axes, torch.int64)
        inputs = {"forked": [*base, *to_channels, branch, keep, source]}
        modules: dict[str, torch.nn.Module] = {"forked": ForkedTransformer(adapter, block)}
    else:
        base = [replace(tensor, axes=_rows(tensor.axes)) for tensor in base]
        inputs = {"base": base, "degraded": [*base, *to_channels, keep]}
        modules = {
            "base": BaseTransformer(adapter),
            "degraded": DegradedTransformer(adapter, block),
        }
    prediction: tuple[TensorSpec, ...] = (TensorSpec("prediction", adapter.output_axes()),)
    outputs = dict.fromkeys(modules, prediction)
    if observe:
        name = next(iter(modules))
        modules[name] = ObservedTransformer(adapter, modules[name])
        outputs[name] += _observed(adapter, block if layout == Layout.forked else -1)
    if anchored:
        modules["forked"] = AnchoredTransformer(modules["forked"])
        inputs["forked"].append(TensorSpec("anchor", ("base_rows",), torch.int64))
    conditioning = _unit(
        adapter,
        ConditioningTransformer(adapter),
        "conditioning",
        conditioning_inputs(adapter),
        conditioning_outputs(adapter),
    )
    units = {
        name: _unit(adapter, modules[name], name, tuple(inputs[name]), outputs[name], conditioning)
        for name in modules
    }
    return units | {"conditioning": conditioning}


def _observed(adapter: Adapter, block: int) -> tuple[TensorSpec, ...]:
    """Return the further outputs of an observed graph, which has base rows up to `block`."""
    axes: dict[str, tuple[Axis, ...]] = {
        "hidden_states": (_tokens(adapter), adapter.channels),
        "gate": (adapter.channels,),
    }
    return tuple(
        TensorSpec(f"{role}_{k}", ("base_rows" if k <= block else "rows", *axes[role]))
        for role in OBSERVED
        for k in range(len(adapter.blocks()))
    )


def _rows(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    return tuple("rows" if axis == "base_rows" else axis for axis in axes)


def _unit(
    adapter: Adapter,
    module: torch.nn.Module,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    fed_by: ExportUnit | None = None,
) -> ExportUnit:
    patch = adapter.patch_size
    latent = adapter.latent()
    height, width = 6 * patch, 8 * patch
    # Different kinds of rows have different sizes, or torch.export would treat them as one.
    sizes = {"base_rows": 2, "rows": 3, "text_length": 5, "tokens": 48, "references": 7}
    sizes |= {"conditions": 3, "prompts": 2}
    sizes |= {"latent_height": height, "latent_width": width}
    classes = adapter.classes()
    return ExportUnit(
        module,
        GraphSpec(
            f"transformer/{name}.onnx",
            inputs,
            outputs,
            adapter.dtype,
            rewrites_attention=fed_by is not None,
        ),
        sizes,
        {"latent_height": patch, "latent_width": patch},
        {
            "latent_height": latent.max_height // latent.vae_scale_factor,
            "latent_width": latent.max_width // latent.vae_scale_factor,
        },
        vocabulary=classes.count if classes else 1,
        fed_by=fed_by,
    )


def _tokens(adapter: Adapter) -> Axis:
    """Return the axis of image tokens, which is a number if images have a fixed size."""
    latent = adapter.latent()
    if not latent.fixed_size:
        return "tokens"
    unit = adapter.size_multiple
    return (latent.max_height // unit) * (latent.max_width // unit)
