"""diffusers' guiders in the place of classifier-free guidance, for D_c and D_0."""

from __future__ import annotations

import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    BaseGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    MagnitudeAwareGuidance,
    TangentialClassifierFreeGuidance,
)

_KINDS = (
    ClassifierFreeGuidance,
    AdaptiveProjectedGuidance,
    ClassifierFreeZeroStarGuidance,
    MagnitudeAwareGuidance,
    TangentialClassifierFreeGuidance,
)


class Rule:
    """Combines D_c and D_0 as a guider of diffusers does."""

    def __init__(self, guider: BaseGuidance) -> None:
        """Take a guider that needs nothing but both predictions.

        Raises:
            TypeError: it is another guider, which runs branches of its own.
        """
        if type(guider) not in _KINDS:
            names = ", ".join(kind.__name__ for kind in _KINDS)
            raise TypeError(f"cfg has to be one of {names}, not {type(guider).__name__}")
        self._guider = guider

    @property
    def needs_unconditional(self) -> bool:
        """Whether the step has D_0, or before the first step, whether any has."""
        return bool(self._guider.num_conditions > 1)

    @property
    def is_zero(self) -> bool:
        """Whether the step is one in which CFG-Zero* predicts zero, so that it has no DG."""
        guider = self._guider
        zero_star = isinstance(guider, ClassifierFreeZeroStarGuidance)
        return zero_star and guider._step < guider.zero_init_steps

    def begin(self, step: int, steps: int, timestep: torch.Tensor) -> None:
        """Begin a step; the first one of a run clears the guider's memory."""
        self._guider.set_state(step, steps, timestep)
        self._guider.prepare_inputs({})

    def combine(
        self, conditional: torch.Tensor, unconditional: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the guided prediction, from predictions of one shape."""
        pred: torch.Tensor = self._guider.forward(conditional, unconditional).pred
        return pred
