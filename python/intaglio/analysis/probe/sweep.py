"""Compares the massive channels of several checkpoints: against their width and their depth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.analysis.channels.model_recorder import record_model
from intaglio.analysis.report import plots
from intaglio.analysis.report.output_folder import (
    CHECKPOINTS,
    check_output,
    read_prompts,
    versions,
)
from intaglio.analysis.report.page import Figure, Report, Section, Table
from intaglio.torch_reference.model import Model
from intaglio_export.calibration.massive import CONDITIONS, RATIO, TOKENS, ChannelStatistics
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.options import ModelSettings, read_settings
from intaglio_export.sources import Source, open_source

# Images for the statistics of each checkpoint.
OBSERVED = 40


def sweep(
    sources: Sequence[str],
    output: Path,
    prompts: Path | None,
    steps: int,
    progress: Callable[[str, float], None],
) -> Report:
    """Record the image stream of every checkpoint, and write the report to `output`.

    The recordings are kept there, so a sweep that was stopped continues.

    Raises:
        ExportError: there are fewer than two checkpoints, or one of them cannot be used.
    """
    if len(sources) < 2:
        raise ExportError(
            "--sweep compares checkpoints: name two or more, or leave out --sweep.", ExitCode.USAGE
        )
    check_output(output)
    texts = read_prompts(prompts) if prompts else [p for p in PROMPTS if p]
    found = []
    for name in sources:
        progress(f"Recording {name}", 0.0)
        found.append(_measure(open_source(name), name, texts, output, steps, progress))
    section = sweep_section(found)
    about = {
        "checkpoints": ", ".join(sources),
        "conditions": f"{len(texts)} prompts, {OBSERVED} images, {steps} steps, no guidance",
        "versions": ", ".join(map(" ".join, versions().items())),
    }
    report = Report("Massive activations against width and depth", about, [section])
    report.write(output)
    return report


def _measure(
    source: Source,
    name: str,
    texts: Sequence[str],
    output: Path,
    steps: int,
    progress: Callable[[str, float], None],
) -> dict[str, Any]:
    adapter = source.adapter
    settings = read_settings(source.settings) if source.settings else ModelSettings()
    length = settings.max_sequence_length or adapter.defaults().max_sequence_length or 1
    model = Model(adapter, texts, length, null=False)
    key = hashlib.sha256(name.encode()).hexdigest()[:12]
    statistics = record_model(
        model,
        range(OBSERVED),
        steps,
        output / CHECKPOINTS / f"{key}.npz",
        lambda share: progress(f"Recording {name}", share),
        points=["after"],
    )
    parameters = sum(parameter.numel() for parameter in adapter.transformer.parameters())
    size = {"checkpoint": name, "depth": model.blocks, "width": adapter.channels}
    return size | {"parameters": parameters} | largest_channel(statistics.channels())


def largest_channel(found: ChannelStatistics) -> dict[str, Any]:
    """Return the largest ratio, its block and channel, the largest |z|, and what is massive."""
    block, channel = divmod(int(found.ratio.argmax()), found.ratio.shape[1])
    massive = sorted({c for k in found.blocks_with_massive() for c in found.massive(k)})
    return {
        "ratio": float(found.ratio[block, channel]),
        "block": block,
        "place": (block + 1) / len(found.ratio),
        "channel": channel,
        "max_abs": float(found.max_abs.max()),
        "massive": massive,
        "massive_blocks": found.blocks_with_massive(),
    }


def sweep_section(found: Sequence[dict[str, Any]]) -> Section:
    """Report the checkpoints in one table and one figure."""
    definition = (
        f"mean |z| at least {RATIO:g} times the median channel's on {TOKENS:.0%} of the tokens, in"
        f" {CONDITIONS:.0%} of the prompts, seeds and steps"
    )
    having = [one["checkpoint"] for one in found if one["massive"]]
    claims = [
        f"{len(having)} of {len(found)} checkpoints have massive channels ({definition})"
        + (f": {', '.join(having)}." if having else "."),
        *(_trend(found, axis) for axis in ("width", "depth")),
    ]
    table = Table(
        ["checkpoint", "depth", "width", "parameters", "largest ratio", "after block",
         "share of depth", "channel", "max abs(z)", "massive channels", "blocks with them"],
        [
            [one["checkpoint"], one["depth"], one["width"], one["parameters"], one["ratio"],
             one["block"], one["place"], one["channel"], one["max_abs"],
             ", ".join(map(str, one["massive"])) or "none", len(one["massive_blocks"])]
            for one in found
        ],
    )  # fmt: skip
    names = [Path(one["checkpoint"]).name for one in found]
    figure = Figure(
        "sweep.png",
        plots.scatters(
            {axis: [one[axis] for one in found] for axis in ("width", "depth")},
            {
                "largest ratio": [one["ratio"] for one in found],
                "largest |z|": [one["max_abs"] for one in found],
                "its place, share of depth": [one["place"] for one in found],
            },
            names,
        ),
        "The largest channel of each checkpoint: its mean |z| over the median channel's, its"
        " largest |z|, and after which share of the blocks it is largest.",
    )
    return Section("Width and depth", claims, [table], [figure], {"checkpoints": list(found)})


def _trend(found: Sequence[dict[str, Any]], axis: str) -> str:
    """Say how the ratio goes with width or depth, among checkpoints that differ in it."""
    sizes = [one[axis] for one in found]
    if len(set(sizes)) < 2:
        return f"All checkpoints have the same {axis}, so nothing is known of it."
    order = sorted(found, key=lambda one: one[axis])
    ratios = {
        size: float(np.mean([one["ratio"] for one in found if one[axis] == size]))
        for size in sorted(set(sizes))
    }
    rises = np.diff(list(ratios.values()))
    word = "grows" if (rises > 0).all() else "falls" if (rises < 0).all() else "does not only grow"
    return (
        f"The largest ratio {word} with {axis}: {ratios[order[0][axis]]:.3g} at"
        f" {order[0][axis]} and {ratios[order[-1][axis]]:.3g} at {order[-1][axis]}. Checkpoints may"
        " differ in more than that."
    )
