"""Omega, the guidance scale with which CFG alone would push as far in its own direction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio.torch_reference.guidance import Method, Predictions
from intaglio.torch_reference.model import Step


@dataclass
class EffectiveGuidance:
    """The effective guidance of each step and image of `method`, one array [N] for each step.

    `omega` is 1 + lambda + w <D_c - D_n, D_c - D_0> / |D_c - D_0|^2, with w = 0 outside the window;
    it stays empty for a model without D_0. `negative_norms` is sigma |D_c - D_n| of the steps with
    a negative branch. That is the length of the term on the clean image, where predictions of
    different steps have the same scale.
    """

    method: Method
    omega: list[NDArray[np.float64]] = field(default_factory=list)
    negative_norms: list[NDArray[np.float64]] = field(default_factory=list)

    def __call__(self, step: Step, predictions: Predictions) -> None:
        """Record one step; `Method.predictor` takes this as `observe`."""
        conditional, unconditional = predictions.conditional, predictions.unconditional
        away = None
        if predictions.negative is not None:
            away = (conditional - predictions.negative).flatten(1).double()
            self.negative_norms.append(step.sigma * away.norm(dim=1).numpy())
        if unconditional is None:
            return
        towards = (conditional - unconditional).flatten(1).double()
        share = torch.zeros(len(conditional), dtype=torch.float64)
        if away is not None:
            share = (away * towards).sum(1) / towards.square().sum(1).clamp_min(1e-12)
        omega = self.method.scale_at(step) + self.method.weight * share
        self.omega.append(omega.numpy())
