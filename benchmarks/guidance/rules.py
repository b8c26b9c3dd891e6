"""Guidance methods of the literature for the torch model; docs/guidance.md has their formulas.

diffusers' guiders combine D_c and D_0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeZeroStarGuidance,
    MagnitudeAwareGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

from intaglio.analysis.guidance.negatives import Skipped
from intaglio.torch_reference.guidance import Method, ObserveBranches, run_branches, term
from intaglio.torch_reference.model import Model, Predict, Step
from intaglio_export.adapters.base import Inputs

# APG's parameters in its paper (arXiv 2410.02416).
MOMENTUM, THRESHOLD = -0.5, 15.0
# A step, D_c and D_0 -> what CFG's place takes.
Rule = Callable[[Step, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Dropped:
    """The negative branch of S2-Guidance (arXiv 2508.12880): each step skips another block.

    The paper drops a tenth of the blocks; of a model with few blocks it is one.
    """

    seed: int = 0

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        draw = np.random.default_rng([self.seed, step.index])
        return Skipped(int(draw.integers(model.blocks))).predict(model, step, base)


@dataclass(frozen=True)
class Ruled(Method):
    """A method with another `rule` than CFG's, and with TAG where `tag` is not 1.

    `zero_steps` is of cfg-zero and `alpha` of mambo-g. The scheduler has to be Euler's, whose step
    goes along D.
    """

    rule: str = "cfg"
    zero_steps: int = 1
    alpha: float = 8.0
    tag: float = 1.0

    def predictor(self, model: Model, observe: ObserveBranches | None = None) -> Predict:
        """Return the function that `Model.sample` takes; it holds the momentum of one run."""
        rule = rule_of(self)

        def predict(step: Step, conditional: Inputs, null: Inputs) -> torch.Tensor:
            weight = self.weight_at(step)
            unconditional = null if self.cfg_scale != 1.0 else None
            negative = self.negative if weight else None
            found = run_branches(model, step, conditional, unconditional, negative)
            if observe:
                observe(step, found)
            result = found.conditional
            if found.unconditional is not None:
                result = rule(step, result, found.unconditional)
            if found.negative is not None:
                result = result + term(weight, found.conditional, found.negative)
            return result if self.tag == 1.0 else amplified(step.latents, result, self.tag)

        return predict


def amplified(latents: torch.Tensor, prediction: torch.Tensor, tag: float) -> torch.Tensor:
    """Return the prediction with its part across the latents multiplied by `tag` (TAG, arXiv
    2510.04533)."""
    x, d = latents.flatten(1).double(), prediction.flatten(1).double()
    along = (x * d).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    return (along + tag * (d - along)).reshape(prediction.shape).float()


def rule_of(method: Ruled) -> Rule:
    """Return what combines D_c and D_0 in one run."""
    scale = method.cfg_scale
    if method.rule == "apg":
        # The papers' D_c + lambda d is diffusers' original formulation.
        apg = AdaptiveProjectedGuidance(
            scale - 1, MOMENTUM, THRESHOLD, eta=0.0, use_original_formulation=True
        )
        apg.momentum_buffer = MomentumBuffer(MOMENTUM)

        def on_clean_data(step: Step, c: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            x, sigma = step.latents, step.sigma
            clean = _forward(apg, step, x - sigma * c, x - sigma * u)
            return (x - clean) / sigma

        return on_clean_data
    if method.rule == "cfg":
        return lambda step, c, u: c + term(scale - 1, c, u)
    if method.rule == "tcfg":
        tangential = TangentialClassifierFreeGuidance(scale)
        return lambda step, c, u: _forward(tangential, step, c, u)
    if method.rule == "mambo-g":
        # diffusers' norms are over the two axes after the first.
        mambo = MagnitudeAwareGuidance(scale, method.alpha)
        return lambda step, c, u: _forward(mambo, step, c.flatten(2), u.flatten(2)).view_as(c)
    assert method.rule == "cfg-zero", method.rule
    zero = ClassifierFreeZeroStarGuidance(scale, method.zero_steps)
    return lambda step, c, u: _forward(zero, step, c, u)


def _forward(guider: object, step: Step, c: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    guider.set_state(step.index, step.steps, step.timestep)  # type: ignore[attr-defined]
    pred: torch.Tensor = guider.forward(c, u).pred  # type: ignore[attr-defined]
    return pred
