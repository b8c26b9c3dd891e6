"""Reference images: tokens that follow those that are drawn, and that no step changes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter, Inputs
from intaglio_export.graph_specs import TensorSpec


@dataclass(frozen=True)
class References:
    """The reference images that a run may take, as the manifest's `references`.

    There are up to `most`. Tokens of the k-th, from 1, have positions (k * `time`, row, column).
    A picture is scaled to that of `sizes`, (width, height) in pixels, whose aspect is nearest.
    Without `sizes` it is scaled down to `max_area` pixels, and cut to whole tokens around its
    middle. Pictures with a side below `min_side`, or more than `max_aspect` times as long as wide,
    are refused. With `only`, a run does not start from a picture.
    """

    most: int
    time: int
    sizes: tuple[tuple[int, int], ...] = ()
    max_area: int | None = None
    min_side: int | None = None
    max_aspect: int | None = None
    only: bool = False


class ReferencesAdapter(Adapter):
    """A family whose transformer also reads reference images; it goes before the family's adapter.

    The family's own `predict` and blocks see one sequence of both kinds of tokens. Everybody else
    sees those that are drawn.
    """

    _drawn: int | None = None  # the tokens that are drawn, in a forward with references

    @abstractmethod
    def references(self) -> References:
        """Return which reference images a run may take."""

    def reference_inputs(self) -> tuple[TensorSpec, ...]:
        """Return the transformer's further inputs, which a forward may leave out."""
        latent = self.inputs()[0]
        return (
            TensorSpec("references", ("base_rows", "references", latent.axes[-1])),
            TensorSpec("reference_position", ("references", 3)),
        )

    def predict(self, inputs: Inputs) -> torch.Tensor:
        latent, references = inputs["latent"], inputs.get("references")
        self._drawn = None
        if references is None:
            return super().predict(inputs)  # type: ignore[safe-super]
        self._drawn = latent.shape[1]
        positions = [inputs["position"], inputs["reference_position"]]
        joined = {"latent": torch.cat([latent, references], 1), "position": torch.cat(positions)}
        return super().predict(inputs | joined)[:, : self._drawn]  # type: ignore[safe-super]

    def split(
        self, block: nn.Module, streams: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """Split as the family does. The references' tokens are the last of the other streams."""
        hidden, others = super().split(block, streams)
        if self._drawn is None:
            return hidden, others
        return hidden[:, : self._drawn], (*others, hidden[:, self._drawn :])

    def join(
        self, block: nn.Module, hidden: torch.Tensor, others: tuple[torch.Tensor | None, ...]
    ) -> Any:
        if self._drawn is None:
            return super().join(block, hidden, others)
        *others_, references = others
        assert references is not None
        return super().join(block, torch.cat([hidden, references], dim=1), tuple(others_))
