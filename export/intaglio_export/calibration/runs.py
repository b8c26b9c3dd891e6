"""Inputs of the model's own runs for the graph of layout forked, with rows of all branches."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from intaglio_export.adapters.base import Adapter, Inputs
from intaglio_export.bundle.manifest import Suppression
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.networks.conditioning import condition, loop_inputs

_WITHOUT = PROMPTS.index("")  # the prompt of D_0


def branched(adapter: Adapter, steps: Iterable[Inputs], suppression: Suppression) -> list[Inputs]:
    """Return the inputs of a forward for each of `steps`, as `calibrate` records them, by role.

    Each prompt but the empty one becomes an image. Base rows are those of D_0 of all images, then
    those of D_c, and rows after the fork are these and those of D_m, where the channels of
    `suppression` are suppressed on all tokens.
    """
    return [_forward(adapter, step, suppression) for step in steps]


def _forward(adapter: Adapter, step: Inputs, suppression: Suppression) -> Inputs:
    conditional = [row for row in range(len(PROMPTS)) if row != _WITHOUT]
    images = len(conditional)
    inputs = {}
    for role, value in step.items():
        if value.shape[:1] != (len(PROMPTS),) or role == "position":
            inputs[role] = value
            continue
        same = role in ("latent", "timestep", "guidance")
        without = conditional if same else [_WITHOUT] * images
        inputs[role] = value[without + conditional]
    if classes := adapter.classes():
        inputs["class"][:images] = classes.null
    tensors = condition(adapter, inputs)
    known = {spec.role: x for spec, x in zip(loop_inputs(adapter), tensors, strict=True)}
    row = torch.arange(2 * images)
    mask = torch.zeros(adapter.channels)
    mask[suppression.channels] = 1.0
    keep = torch.ones(3 * images, _tokens(adapter, inputs["latent"]))
    keep[2 * images :] = 0.0
    return known | {
        "mask": mask,
        "ref": torch.tensor(suppression.ref or [0.0] * adapter.channels),
        "branch": torch.cat([row, row[images:]]),
        "keep": keep,
        "source": torch.zeros_like(keep, dtype=torch.int64),
        "anchor": row[images:].repeat(2),
    }


def _tokens(adapter: Adapter, latent: torch.Tensor) -> int:
    if adapter.latent().packed:
        return latent.shape[1]
    return latent.shape[-2] * latent.shape[-1] // adapter.patch_size**2
