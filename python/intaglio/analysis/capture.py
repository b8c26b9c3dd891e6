"""Streaming statistics of hidden states: sums for each block, channel and step, and no activations.

A `Recorder` is told rows of hidden states, from a diffusers model (`observation.record_model`) or
from an observed bundle (`record_bundle`), and needs no torch. Its memory depends on the model and
the number of steps, and on nothing else; its file can be gone on with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import intaglio
from intaglio.analysis.folder import read_arrays, versions, write_arrays, write_whole
from intaglio_export.calibration.massive import ChannelStatistics, measure
from intaglio_export.errors import ExportError

QUANTILES = (0.5, 0.9, 0.99)
GATE = "gate"  # the point without tokens; see `intaglio_export.adapters.observing`

Floats = NDArray[np.floating]


class Recorder:
    """Sums over conditions (a row at a step), by point: [L, S, C], but max_abs, which is a maximum.

    Of streams: `mean` z, `mean_abs`, `max_abs`, `ratio` (mean |z| over the median channel's),
    `agreement` (share of tokens from massive.RATIO on), `massive` (0 or 1), and `quantiles`
    [L, S, C, 3] of |z| over tokens. `tokens` [L, S, T]: a token's mean |z| over the median token's.
    Of the gate: `mean` and `mean_abs`.
    """

    def __init__(self, blocks: int, steps: int) -> None:
        self.blocks, self.steps = blocks, steps
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.sigmas = np.zeros(steps)
        self.done = 0  # batches of conditions that are in the sums
        self.about: dict[str, Any] = {}

    def add(
        self,
        point: str,
        block: int,
        step: int,
        rows: Floats,
        tokens: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count `rows`, z [B, T, C] of a stream or alpha [B, C] of the gate, at step `step`.

        `tokens` [B, T] says which tokens count; None stands for all.
        """
        place = block, step
        for i, row in enumerate(rows):
            self._add(point, "count", place, np.float64(1))
            if point == GATE:
                self._add(point, "mean", place, row)
                self._add(point, "mean_abs", place, np.abs(row))
                continue
            counted = np.ones(len(row), bool) if tokens is None else tokens[i]
            self._add_tokens(point, place, row[counted], counted)

    def _add_tokens(
        self, point: str, place: tuple[int, int], row: Floats, counted: NDArray[np.bool_]
    ) -> None:
        """Of z [T', C] of the tokens that count among all."""
        size = np.abs(row)
        condition = measure(size)
        self._add(point, "mean", place, row.mean(0))
        self._add(point, "mean_abs", place, size.mean(0))
        self._add(point, "max_abs", place, size.max(0), np.maximum)
        self._add(point, "ratio", place, condition.ratio)
        self._add(point, "agreement", place, condition.agreement)
        self._add(point, "massive", place, condition.massive)
        self._add(point, "quantiles", place, np.quantile(size, QUANTILES, axis=0).T)
        token = size.mean(1)
        tokens = np.ones(len(counted))  # one that does not count passes for the median
        tokens[counted] = token / max(float(np.median(token)), 1e-6)
        self._add(point, "tokens", place, tokens)

    def _add(
        self,
        point: str,
        name: str,
        place: tuple[int, int],
        value: Any,
        how: Callable[[Any, Any], Any] = np.add,
    ) -> None:
        key = f"{point}.{name}"
        if key not in self.sums:
            self.sums[key] = np.zeros((self.blocks, self.steps, *np.shape(value)))
        self.sums[key][place] = how(self.sums[key][place], value)

    def save(self, path: Path) -> None:
        """Write the sums, and what they are of, to `path` (.npz)."""
        about = {"done": self.done, "sigmas": self.sigmas, "about": json.dumps(self.about)}
        write_arrays(path, self.sums | about)

    def describe(self, path: Path) -> None:
        """Write what the sums are of, with versions, to `path` (.json), for people."""
        text = json.dumps(self.about | {"versions": versions()}, indent=1) + "\n"
        write_whole(path, text.encode())

    def resume(self, path: Path) -> None:
        """Go on from the file that `save` wrote, where it is of the same conditions."""
        arrays = read_arrays(path)
        if arrays is None or str(arrays.pop("about", None)) != json.dumps(self.about):
            return
        self.done = int(arrays.pop("done"))
        self.sigmas = arrays.pop("sigmas")
        self.sums = arrays

    def result(self) -> Statistics:
        """The averages."""
        averages = {}
        for key, total in self.sums.items():
            point, name = key.split(".")
            count = self.sums[f"{point}.count"].clip(1)
            count = count.reshape(*count.shape, *[1] * (total.ndim - 2))
            averages[key] = total if name in ("count", "max_abs") else total / count
        return Statistics(averages, self.sigmas.tolist(), self.about)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Averages over conditions of what `Recorder` sums, by "point.name"."""

    values: dict[str, NDArray[np.float64]]
    sigmas: list[float]  # of each step
    about: dict[str, Any]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self.values[name]

    def has(self, point: str) -> bool:
        """Whether `point` was recorded."""
        return f"{point}.mean_abs" in self.values

    def channels(self, point: str = "after") -> ChannelStatistics:
        """Of a stream, over all prompts, seeds and steps."""
        max_abs = self[f"{point}.max_abs"].max((1, 2))
        count = int(self[f"{point}.count"].sum(1).max())
        return ChannelStatistics(
            self[f"{point}.ratio"].mean(1), self[f"{point}.massive"].mean(1), count, max_abs
        )


def record_bundle(
    pipeline: intaglio.Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    path: Path,
    progress: Callable[[float], None] = lambda share: None,
) -> Statistics:
    """Statistics of an observed bundle's conditional branch, with the runtime and without torch.

    Each prompt is drawn from each of `seeds`, without guidance; prompts stand for classes where the
    bundle has these. The sums are kept in `path`, and gone on with.

    Raises:
        ExportError: the bundle was not exported with --observe.
    """
    bundle = pipeline.bundle
    if not bundle.observed:
        raise ExportError(
            f"The bundle {bundle.folder} does not tell its hidden states: export it again with"
            " --observe, or probe the diffusers model."
        )
    recorder = Recorder(bundle.blocks, steps)
    manifest = Path(bundle.folder) / "bundle.json"  # has the hashes of all its files
    recorder.about = {
        "source": bundle.name,
        "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "prompts": list(prompts),
        "seeds": list(seeds),
        "steps": steps,
    }

    def on_step(step: intaglio.Step) -> None:
        recorder.sigmas[step.step] = step.sigma
        for block in range(bundle.blocks):
            recorder.add("after", block, step.step, step.hidden_states(block))
            recorder.add(GATE, block, step.step, step.gate(block))

    recorder.resume(path)
    recorder.describe(path.with_suffix(".json"))
    for i, prompt in enumerate(prompts):
        if i >= recorder.done:
            what: dict[str, Any] = {"prompt": prompt}
            if bundle.classes is not None:
                what = {"class_label": i * bundle.classes.count // len(prompts)}
            pipeline.generate(
                **what, seeds=list(seeds), steps=steps, cfg_scale=1.0, dg_scale=0.0, on_step=on_step
            )
            recorder.done = i + 1
            recorder.save(path)
        progress((i + 1) / len(prompts))
    return recorder.result()
