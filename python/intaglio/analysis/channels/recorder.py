"""Streaming statistics of hidden states: sums for each block, step and channel, no activations.

A `Recorder` is given rows of hidden states, from a diffusers model (`model_recorder.record_model`)
or from an observed bundle (`record_bundle`), and needs no torch. Its memory depends only on the
model and the number of steps. A recording that was stopped continues from its file.
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
from intaglio.analysis.report.output_folder import (
    read_arrays,
    versions,
    write_arrays,
    write_whole,
)
from intaglio_export.calibration.massive import ChannelStatistics, measure
from intaglio_export.errors import ExportError

QUANTILES = (0.5, 0.9, 0.99)
GATE = "gate"  # the only point without tokens; see `intaglio_export.adapters.observing`
ATTENTION = "attention"
# A key that gets this many times an equal share of the image tokens' attention is a sink.
SINK = 10.0

Floats = NDArray[np.floating]


class Recorder:
    """Sums [L, S, C] over conditions, which are rows at a step, for each point of a block.

    For streams: `mean` of z, `mean_abs`, `max_abs` (a maximum, not a sum), `ratio` (mean |z| over
    the median channel's), `agreement` (the share of tokens at massive.RATIO or more), `massive`
    (0 or 1), `quantiles` [L, S, C, 3] of |z| over tokens, and `tokens` [L, S, T], a token's mean
    |z| over the median token's. For the gate: `mean` and `mean_abs`. For attention: `mass`
    [L, S, keys], the share of it that each key gets; `kinds` [L, S, 3, keys], 1 where the key is an
    image, text or padding token; `by_kind` [L, S, 3]; `top` and `top_kind`, the mass and the kind
    of the key that gets most; `sinks` [L, S, keys], 1 for a mass of SINK times an equal share; and
    `any_sink`.
    """

    def __init__(self, blocks: int, steps: int) -> None:
        self.blocks, self.steps = blocks, steps
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.sigmas = np.zeros(steps)
        self.done = 0  # how many batches are in the sums
        self.about: dict[str, Any] = {}

    def add(
        self,
        point: str,
        block: int,
        step: int,
        rows: Floats,
        tokens: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add `rows` of step `step`: z [B, T, C] of a stream, or alpha [B, C] of the gate.

        `tokens` [B, T] selects the tokens that count; None stands for all.
        """
        cell = block, step
        for i, row in enumerate(rows):
            self._add(point, "count", cell, np.float64(1))
            if point == GATE:
                self._add(point, "mean", cell, row)
                self._add(point, "mean_abs", cell, np.abs(row))
                continue
            counted = np.ones(len(row), bool) if tokens is None else tokens[i]
            self._add_tokens(point, cell, row[counted], counted)

    def _add_tokens(
        self, point: str, cell: tuple[int, int], row: Floats, counted: NDArray[np.bool_]
    ) -> None:
        """Add z [T', C] of the tokens that count."""
        size = np.abs(row)
        condition = measure(size)
        self._add(point, "mean", cell, row.mean(0))
        self._add(point, "mean_abs", cell, size.mean(0))
        self._add(point, "max_abs", cell, size.max(0), np.maximum)
        self._add(point, "ratio", cell, condition.ratio)
        self._add(point, "agreement", cell, condition.agreement)
        self._add(point, "massive", cell, condition.massive)
        self._add(point, "quantiles", cell, np.quantile(size, QUANTILES, axis=0).T)
        token = size.mean(1)
        tokens = np.ones(len(counted))  # a token that does not count is taken for the median one
        tokens[counted] = token / max(float(np.median(token)), 1e-6)
        self._add(point, "tokens", cell, tokens)

    def add_attention(
        self, block: int, step: int, mass: Floats, kinds: NDArray[np.integer]
    ) -> None:
        """Add the `mass` [B, keys] of a step's attention, whose keys are of `kinds` [B, keys]."""
        cell = block, step
        for row, kind in zip(mass, np.broadcast_to(kinds, mass.shape), strict=True):
            one_hot = (kind == np.arange(3)[:, None]).astype(np.float64)
            sinks = row >= SINK / len(row)
            self._add(ATTENTION, "count", cell, np.float64(1))
            self._add(ATTENTION, "mass", cell, row)
            self._add(ATTENTION, "kinds", cell, one_hot)
            self._add(ATTENTION, "by_kind", cell, one_hot @ row)
            self._add(ATTENTION, "top", cell, row.max())
            self._add(ATTENTION, "top_kind", cell, one_hot[:, row.argmax()])
            self._add(ATTENTION, "sinks", cell, sinks)
            self._add(ATTENTION, "any_sink", cell, np.float64(sinks.any()))

    def _add(
        self,
        point: str,
        name: str,
        cell: tuple[int, int],
        value: Any,
        how: Callable[[Any, Any], Any] = np.add,
    ) -> None:
        key = f"{point}.{name}"
        if key not in self.sums:
            self.sums[key] = np.zeros((self.blocks, self.steps, *np.shape(value)))
        self.sums[key][cell] = how(self.sums[key][cell], value)

    def save(self, path: Path) -> None:
        """Write the sums and the conditions they belong to, to `path` (.npz)."""
        about = {"done": self.done, "sigmas": self.sigmas, "about": json.dumps(self.about)}
        write_arrays(path, self.sums | about)

    def describe(self, path: Path) -> None:
        """Write the conditions and the packages' versions to `path` (.json), for people."""
        text = json.dumps(self.about | {"versions": versions()}, indent=1) + "\n"
        write_whole(path, text.encode())

    def resume(self, path: Path) -> None:
        """Continue from the file that `save` wrote, if its conditions are the same."""
        arrays = read_arrays(path)
        if arrays is None or str(arrays.pop("about", None)) != json.dumps(self.about):
            return
        self.done = int(arrays.pop("done"))
        self.sigmas = arrays.pop("sigmas")
        self.sums = arrays

    def result(self) -> Statistics:
        """Return the averages."""
        averages = {}
        for key, total in self.sums.items():
            point, name = key.split(".")
            count = self.sums[f"{point}.count"].clip(1)
            count = count.reshape(*count.shape, *[1] * (total.ndim - 2))
            averages[key] = total if name in ("count", "max_abs") else total / count
        return Statistics(averages, self.sigmas.tolist(), self.about)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Averages over conditions of what a `Recorder` sums, by "point.name"."""

    values: dict[str, NDArray[np.float64]]
    sigmas: list[float]  # of each step
    about: dict[str, Any]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self.values[name]

    def has(self, point: str) -> bool:
        """Whether `point` was recorded."""
        return f"{point}.count" in self.values

    def channels(self, point: str = "after") -> ChannelStatistics:
        """Return the statistics of a stream's channels over all prompts, seeds and steps."""
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
    """Record an observed bundle's conditional branch with the runtime, without torch.

    Each prompt is drawn with each of `seeds`, without guidance. If the bundle takes classes, they
    take the place of the prompts. The sums are kept in `path`, so a stopped recording continues.

    Raises:
        ExportError: the bundle was not exported with --observe.
    """
    bundle = pipeline.bundle
    if not bundle.observed:
        raise ExportError(
            f"The bundle {bundle.folder} has no outputs for hidden states: export it again with"
            " --observe, or probe the diffusers model."
        )
    recorder = Recorder(bundle.blocks, steps)
    manifest = Path(bundle.folder) / "bundle.json"  # it has the hashes of all files
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
            request: dict[str, Any] = {"prompt": prompt}
            if bundle.classes is not None:
                request = {"class_label": i * bundle.classes.count // len(prompts)}
            pipeline.generate(
                **request,
                seeds=list(seeds),
                steps=steps,
                cfg_scale=1.0,
                dg_scale=0.0,
                on_step=on_step,
            )
            recorder.done = i + 1
            recorder.save(path)
        progress((i + 1) / len(prompts))
    return recorder.result()
