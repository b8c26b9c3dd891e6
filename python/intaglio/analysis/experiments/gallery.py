"""Draws pictures in batches and keeps what was measured of them in files.

So a probe that was stopped continues, and a setting that two sections share is drawn once.
"""

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

from intaglio.analysis.guidance.effective_guidance import EffectiveGuidance
from intaglio.analysis.quality import measures
from intaglio.analysis.quality.judge import Judge
from intaglio.analysis.report.output_folder import read_arrays, write_arrays
from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model

# Images that run through the model at once.
BATCH = 40
# How many pictures of a set are kept; of the others only the measurements are.
KEPT = 64

Scope = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """What was measured of N pictures, in the order of their seeds.

    `values` holds arrays [N, ...] by name: `measures.DETAIL`, saturation, clipped, low_pass, lab,
    prompt (index); features and class if there is a judge; omega and negative_norm, which are means
    of `EffectiveGuidance` over the steps, where these are defined. `images` is uint8
    [min(N, KEPT), H, W, 3].
    """

    values: dict[str, NDArray[Any]]
    images: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.values["clipped"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.values[name]


class Gallery:
    """Draws with `model` in `steps` steps, measures with `judge`, and keeps files in `folder`."""

    def __init__(
        self,
        model: Model,
        judge: Judge | None,
        folder: Path,
        steps: int,
        identity: str,
        progress: Callable[[int], None] = lambda images: None,
    ) -> None:
        """`identity` is that of the model (`fingerprint.identity`); another way to run the same
        model may share it. `progress` is called with the number of images of each batch."""
        self.model = model
        self.judge = judge
        self.steps = steps
        self.folder = folder
        self._identity = [identity, model.grid, steps, judge and judge.identity]
        self._progress = progress

    def draw(self, method: Method, seeds: Sequence[int], omega: bool = False) -> Pictures:
        """Draw pictures with `method`.

        `omega` also measures its effective guidance, which runs D_0 even where the method does not
        need it. A model without D_0 has no omega, and neither has a family that scales the result
        of CFG; then only the norms are measured.
        """
        measured = "norms" if omega and not self.model.has_null else omega
        return self._draw([_method_key(method), measured], method, omega, nullcontext, seeds)

    def draw_changed(
        self, name: str, method: Method, scope: Scope, seeds: Sequence[int]
    ) -> Pictures:
        """Draw pictures with `method` inside `scope`, an intervention that `name` identifies."""
        return self._draw([name, _method_key(method)], method, False, scope, seeds)

    def _draw(
        self, key: list[Any], method: Method, omega: bool, scope: Scope, seeds: Sequence[int]
    ) -> Pictures:
        parts = []
        kept: list[NDArray[np.uint8]] = []
        for start in range(0, len(seeds), BATCH):
            chunk = list(seeds[start : start + BATCH])
            text = json.dumps([*self._identity, *key, chunk], sort_keys=True)
            path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz"
            shown = max(0, min(KEPT - start, len(chunk)))
            values = read_arrays(path)
            if values is None or len(values["images"]) < shown:
                values = self._measure(method, omega, scope, chunk)
                values["images"] = values["images"][:shown]
                write_arrays(path, values)
            self._progress(len(chunk))
            values["prompt"] = np.array(chunk) % len(self.model.prompts)
            kept.append(values.pop("images")[:shown])
            parts.append(values)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Pictures(joined, np.concatenate(kept))

    def _measure(
        self, method: Method, omega: bool, scope: Scope, seeds: Sequence[int]
    ) -> dict[str, NDArray[Any]]:
        guidance = EffectiveGuidance(method)
        predict = method.predictor(self.model, guidance if omega else None)
        with scope():
            latents = self.model.sample(predict, seeds, self.steps)
        images = self.model.images(latents)
        # Most measures are taken of the picture as an 8-bit file has it.
        rounded = (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
        shown = rounded / np.float32(255)
        values: dict[str, NDArray[Any]] = {
            **measures.detail(shown),
            "saturation": measures.saturation(images),
            "clipped": measures.clipped(images),
            "low_pass": measures.low_pass(shown),
            "lab": measures.mean_lab(shown),
            "images": rounded,
        }
        if self.judge is not None:
            values["features"], values["class"] = self.judge.describe(images)
        if guidance.omega and not self.model.adapter.cfg_rescale:
            values["omega"] = np.mean(guidance.omega, axis=0)
        if guidance.negative_norms:
            values["negative_norm"] = np.mean(guidance.negative_norms, axis=0)
        return values


def _method_key(method: Method) -> Any:
    """Return a method as JSON, with all of its fields; the class name keeps negatives with the same
    fields apart."""
    negative = method.negative
    described = None
    if negative is not None:
        values = {
            name: str(value) for name, value in vars(negative).items() if name != "transformer"
        }
        described = [type(negative).__name__, values]
    return {**vars(method), "negative": described}
