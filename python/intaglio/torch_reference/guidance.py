"""Guidance with up to three branches: which of them a step runs, and how they are combined.

    D = D_c + lambda (D_c - D_0) + w (D_c - D_n),   cfg_scale = 1 + lambda

D_c is the conditional prediction, D_0 the unconditional one, and D_n that of a `Negative`. Detail
Guidance (arXiv 2510.11538) is the negative branch with suppressed channels, `Suppressed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from intaglio.torch_reference.model import Model, Predict, Step
from intaglio.torch_reference.suppression import channel_tensors
from intaglio_export.adapters.base import Inputs
from intaglio_export.networks.conditioning import condition
from intaglio_export.networks.forking import ForkedTransformer

Window = tuple[float, float]
# The values at the first and the last step; steps in between are on the line through both.
Ramp = tuple[float, float]


class Negative(Protocol):
    """A prediction to steer away from."""

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the predictions of the rows of `base`, the last N of which are conditional, and
        D_n [N, ...]."""


@dataclass(frozen=True)
class Suppressed:
    """D_m: `channels` of the image stream are moved towards `ref` (None: zeros) after `block`.

    `ma_keep` is 1 to leave the channels alone and 0 to suppress them fully.
    """

    block: int
    channels: tuple[int, ...]
    ma_keep: Ramp = (0.0, 0.0)
    ref: tuple[float, ...] | None = None

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(step.latents)
        rows = len(base["latent"])
        mask, ref = channel_tensors(self.channels, self.ref, model.adapter.channels)
        branch = torch.cat([torch.arange(rows), torch.arange(rows - n, rows)])
        keep = torch.ones(rows + n, model.tokens)
        keep[rows:] = ramp(self.ma_keep, step)
        forked = ForkedTransformer(model.adapter, self.block)
        source = torch.zeros_like(keep, dtype=torch.int64)
        out = forked(*condition(model.adapter, base), mask, ref, branch, keep, source)
        return out[:rows], out[rows:]


def ramp(values: Ramp, step: Step) -> float:
    """Return the value of a ramp at `step`."""
    last = max(step.steps - 1, 1)
    return values[0] + (values[1] - values[0]) * step.index / last


@dataclass(frozen=True)
class Predictions:
    """float32 predictions [N, ...] of one step's branches; None for a branch that was not run."""

    conditional: torch.Tensor
    unconditional: torch.Tensor | None
    negative: torch.Tensor | None


# Called with the step and the predictions of its branches.
ObserveBranches = Callable[[Step, Predictions], None]


@dataclass(frozen=True)
class Method:
    """A guidance method. A branch whose weight at a step is zero does not run.

    `window` is the part of the run with the negative branch, `cfg_window` the part with
    classifier-free guidance: start <= i / N < end.
    """

    cfg_scale: float = 1.0
    weight: float = 0.0
    negative: Negative | None = None
    window: Window = (0.0, 1.0)
    cfg_window: Window = (0.0, 1.0)

    def scale_at(self, step: Step) -> float:
        """Return cfg_scale at `step`, which is 1 outside its window."""
        inside = self.cfg_window[0] <= step.share < self.cfg_window[1]
        return self.cfg_scale if inside else 1.0

    def weight_at(self, step: Step) -> float:
        """Return the weight of the negative branch at `step`, which is 0 outside its window."""
        inside = self.window[0] <= step.share < self.window[1]
        return self.weight if inside and self.negative is not None else 0.0

    @property
    def guided(self) -> bool:
        """Whether the method does more than follow the conditional prediction."""
        return self.cfg_scale != 1.0 or self.weight != 0.0

    def predictor(self, model: Model, observe: ObserveBranches | None = None) -> Predict:
        """Return the function that `Model.sample` takes.

        `observe` is called at every step; D_0 is then run even where it has no weight, unless the
        model has none.
        """

        def predict(step: Step, conditional: Inputs, null: Inputs) -> torch.Tensor:
            cfg_scale, weight = self.scale_at(step), self.weight_at(step)
            found = run_branches(
                model,
                step,
                conditional,
                null if cfg_scale != 1.0 or (observe and null) else None,
                self.negative if weight != 0.0 else None,
            )
            if observe:
                observe(step, found)
            guided = found.conditional
            if cfg_scale != 1.0:
                assert found.unconditional is not None
                guided = guided + term(cfg_scale - 1.0, found.conditional, found.unconditional)
                if model.adapter.cfg_rescale:
                    guided = rescaled(guided, found.conditional)
            if found.negative is not None:
                guided = guided + term(weight, found.conditional, found.negative)
            return guided

        return predict


def rescaled(guided: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """Return the result of CFG with the norm of D_c in each token; both are [N, tokens, C]."""
    norm = guided.norm(dim=-1, keepdim=True)
    result: torch.Tensor = guided * (conditional.norm(dim=-1, keepdim=True) / norm.clamp_min(1e-30))
    return result


def term(weight: float, conditional: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return what a branch adds to D_c: weight (D_c - D)."""
    return weight * (conditional - other)


@torch.no_grad()
def run_branches(
    model: Model,
    step: Step,
    conditional: Inputs,
    null: Inputs | None = None,
    negative: Negative | None = None,
) -> Predictions:
    """Run D_c, D_0 if its inputs `null` are given, and D_n if `negative` is, in one batch."""
    n = len(step.latents)
    rows = [conditional] if null is None else [null, conditional]
    base = stack_rows(rows) | {
        "latent": torch.cat([step.latents] * len(rows)),
        "timestep": step.timestep.expand(n * len(rows)),
    }
    steered = None
    if negative is None:
        out = model.adapter.run(base)
    else:
        out, steered = negative.predict(model, step, base)
        steered = steered.float()
    parts = out.float().chunk(len(rows))
    return Predictions(parts[-1], None if null is None else parts[0], steered)


def stack_rows(rows: Sequence[Inputs]) -> Inputs:
    """Concatenate inputs by role; all rows share their positions."""
    return {
        role: value if role == "position" else torch.cat([inputs[role] for inputs in rows])
        for role, value in rows[0].items()
    }


def last_rows(inputs: Inputs, n: int) -> Inputs:
    """Return the last `n` rows of every input that has rows."""
    rows = len(inputs["latent"])
    return {
        role: value[-n:] if role != "position" and len(value) == rows else value
        for role, value in inputs.items()
    }
