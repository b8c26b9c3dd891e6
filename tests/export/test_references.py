"""Reference images in the transformer's graphs: the model itself, run on all tokens in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from intaglio_export.adapters.flux import FluxKontextAdapter
from intaglio_export.adapters.flux2 import Flux2KleinAdapter
from intaglio_export.adapters.packing import positions
from intaglio_export.adapters.references import ReferencesAdapter
from intaglio_export.networks.conditioning import condition, loop_inputs
from intaglio_export.networks.transformer_graphs import transformer_units
from tests.bundles import BLOCK
from tests.export.test_bundle import relative
from tests.export.test_observed import session
from tests.families import flux, flux2

DRAWN, REFERENCE = (4, 6), (3, 5)
ROWS, CHANNELS = 2, [7]


def make_kontext() -> ReferencesAdapter:
    return FluxKontextAdapter(flux.make_kontext())


def make_klein() -> ReferencesAdapter:
    return Flux2KleinAdapter(flux2.make_base())


def inputs_of(adapter: ReferencesAdapter, grids: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = {"base_rows": ROWS, "text_length": 5, "tokens": DRAWN[0] * DRAWN[1]}
    sizes["references"] = sum(rows * columns for rows, columns in grids)
    inputs = {
        spec.role: torch.randn(
            [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes],
            generator=generator,
        )
        for spec in (*adapter.inputs(), *adapter.reference_inputs())
    }
    inputs["timestep"] = 1000 * torch.rand(ROWS, generator=generator)
    inputs["position"] = positions(*DRAWN)
    placed = [positions(*grid) + torch.tensor([10.0 * k, 0, 0]) for k, grid in enumerate(grids, 1)]
    inputs["reference_position"] = torch.cat([torch.zeros(0, 3), *placed])
    return inputs


def predicted(
    adapter: ReferencesAdapter, inputs: dict[str, torch.Tensor], degraded: bool
) -> torch.Tensor:
    """Return what diffusers' transformer makes of both kinds of tokens. D_m loses a channel in
    those that are drawn."""
    text, drawn = inputs["text"], inputs["latent"].shape[1]
    ids = torch.cat([inputs["position"], inputs["reference_position"]])
    named: dict[str, Any] = {"img_ids": ids, "txt_ids": torch.zeros(text.shape[1], 3)}
    if adapter.family == "flux2":
        named["img_ids"] = torch.nn.functional.pad(ids, (0, 1))
        named["txt_ids"] = torch.zeros(text.shape[1], 4)
        named["txt_ids"][:, 3] = torch.arange(text.shape[1])
    else:
        named["pooled_projections"] = inputs["pooled"]

    def zero(module: Any, args: Any, output: Any) -> Any:
        hidden = output[-1].clone()
        hidden[:, :drawn, CHANNELS] = 0.0
        return (*output[:-1], hidden)

    blocks = adapter.transformer.transformer_blocks
    handle = blocks[BLOCK].register_forward_hook(zero) if degraded else None
    made = adapter.transformer(
        hidden_states=torch.cat([inputs["latent"], inputs["references"]], 1),
        encoder_hidden_states=text,
        timestep=inputs["timestep"] / 1000,
        guidance=inputs.get("guidance"),
        return_dict=False,
        **named,
    )[0]
    if handle:
        handle.remove()
    return made[:, :drawn]


@torch.no_grad()
@pytest.mark.parametrize(("make", "layout"), [(make_kontext, "forked"), (make_klein, "dual")])
def test_graphs_read_references_and_predict_what_is_drawn(
    make: Any, layout: str, tmp_path: Path
) -> None:
    """None of them, one or two. Whole runs of the other layouts are in tests/parity."""
    adapter = make()
    units = transformer_units(adapter, layout, BLOCK)
    sessions = {
        name: session(unit, tmp_path / f"{name}.onnx")
        for name, unit in units.items()
        if name != "conditioning"
    }
    mask = torch.zeros(adapter.channels)
    mask[CHANNELS] = 1.0
    for grids in ([], [REFERENCE], [REFERENCE, (2, 2)]):
        inputs = inputs_of(adapter, grids)
        expected, degraded = (predicted(adapter, inputs, kind) for kind in (False, True))
        assert relative(degraded, expected) > 1e-3
        tensors = condition(adapter, inputs)
        known = {spec.role: x for spec, x in zip(loop_inputs(adapter), tensors, strict=True)}
        known |= {"mask": mask, "ref": 0 * mask}
        branches = {"forked": torch.cat([expected, degraded[1:]])}
        branches |= {"base": expected, "degraded": degraded}
        for name in sessions:
            wanted = branches[name]
            keep = torch.ones(len(wanted), inputs["latent"].shape[1])
            keep[0 if name == "degraded" else ROWS :] = 0.0
            known |= {"keep": keep, "branch": torch.tensor([0, 1, 1])}
            known["source"] = torch.zeros_like(keep, dtype=torch.int64)
            feeds = {v.name: known[v.name].numpy() for v in sessions[name].get_inputs()}
            (got,) = sessions[name].run(None, feeds)
            assert relative(torch.from_numpy(got), wanted) < 1e-5, (name, grids)
