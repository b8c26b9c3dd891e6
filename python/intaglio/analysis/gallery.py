"""Pictures drawn in batches and what was measured of them, kept in files so that a stopped probe
goes on where it was, and settings that two parts of a report share are drawn once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intaglio.analysis import quality
from intaglio.analysis.folder import read_arrays, write_arrays
from intaglio.analysis.judge import Judge
from intaglio.analysis.methods import Method, Omega
from intaglio.analysis.sampler import Model, Predict

# Images that run through the model at once.
BATCH = 40
# Pictures of a set that are kept as such; of all others only what was measured.
KEPT = 64

Scope = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """What was measured of N pictures, in the order of their seeds.

    `values` holds arrays [N, ...] by name: `quality.DETAIL`, saturation, clipped, low_pass, lab,
    prompt (index), and features, class of the judge where there is one; omega and negative_norm,
    means over the steps of what `methods.Omega` says. `images` uint8 [min(N, KEPT), H, W, 3].
    """

    values: dict[str, NDArray[Any]]
    images: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.values["clipped"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.values[name]


class Gallery:
    """Draws with `model` in `steps` steps, measures by `judge`, keeps files in `folder`."""

    def __init__(
        self,
        model: Model,
        judge: Judge | None,
        folder: Path,
        steps: int,
        identity: str,
        progress: Callable[[int], None] = lambda images: None,
    ) -> None:
        """`identity` is `sampler.identity` of the model, which another way to run it may share.
        `progress` is told how many images were drawn."""
        self.model = model
        self.judge = judge
        self.steps = steps
        self.folder = folder
        self._identity = [identity, model.grid, steps, judge and judge.identity]
        self._progress = progress

    def draw(self, method: Method, seeds: Sequence[int], omega: bool = False) -> Pictures:
        """Pictures of `method`; `omega` runs D_0 even where the method does not need it."""

        def predict(told: list[Omega]) -> Predict:
            told.append(Omega())
            return method.predictor(self.model, told[0] if omega else None)

        return self._draw([_plain(method), omega], predict, nullcontext, seeds)

    def changed(self, name: str, method: Method, scope: Scope, seeds: Sequence[int]) -> Pictures:
        """Pictures of `method` drawn inside `scope`, an intervention that `name` tells from all
        others."""
        return self._draw(
            [name, _plain(method)], lambda told: method.predictor(self.model), scope, seeds
        )

    def _draw(
        self,
        what: list[Any],
        predict: Callable[[list[Omega]], Predict],
        scope: Scope,
        seeds: Sequence[int],
    ) -> Pictures:
        parts = []
        kept: list[NDArray[np.uint8]] = []
        for start in range(0, len(seeds), BATCH):
            chunk = list(seeds[start : start + BATCH])
            key = json.dumps([*self._identity, *what, chunk], sort_keys=True)
            path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"
            shown = max(0, min(KEPT - start, len(chunk)))
            values = read_arrays(path)
            if values is None or len(values["images"]) < shown:
                values = self._measure(predict, scope, chunk)
                values["images"] = values["images"][:shown]
                write_arrays(path, values)
            self._progress(len(chunk))
            values["prompt"] = np.array(chunk) % len(self.model.prompts)
            kept.append(values.pop("images")[:shown])
            parts.append(values)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Pictures(joined, np.concatenate(kept))

    def _measure(
        self, predict: Callable[[list[Omega]], Predict], scope: Scope, seeds: Sequence[int]
    ) -> dict[str, NDArray[Any]]:
        told: list[Omega] = []
        with scope():
            latents = self.model.sample(predict(told), seeds, self.steps)
        images = self.model.images(latents)
        # As a file of eight bits holds them.
        held = (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
        shown = held / np.float32(255)
        values: dict[str, NDArray[Any]] = {
            **quality.detail(shown),
            "saturation": quality.saturation(images),
            "clipped": quality.clipped(images),
            "low_pass": quality.low_pass(shown),
            "lab": quality.mean_lab(shown),
            "images": held,
        }
        if self.judge is not None:
            values["features"], values["class"] = self.judge.describe(images)
        for omega in told:
            if omega.values:
                values["omega"] = np.mean(omega.values, axis=0)
            if omega.negative:
                values["negative_norm"] = np.mean(omega.negative, axis=0)
        return values


def _plain(method: Method) -> Any:
    """A method as JSON; the class of a negative tells it from another of the same fields."""
    negative = method.negative
    described = None
    if negative is not None:
        values = {
            name: str(value) for name, value in vars(negative).items() if name != "transformer"
        }
        described = [type(negative).__name__, values]
    return [method.cfg_scale, method.weight, method.window, described]
