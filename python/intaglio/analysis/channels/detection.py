"""Parts 1 and 3 of the report: which channels are massive, and where in the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from intaglio.analysis.channels.foreground import Found
from intaglio.analysis.channels.recorder import Statistics
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure, Section, Table
from intaglio_export.calibration.massive import CONDITIONS, RATIO, TOKENS

# How many of the channels with the largest ratio are compared between blocks.
TOP = 8
# A token whose mean |z| is this many times the median token's is an outlier, like a sink.
TOKEN_RATIO = 5.0


def detection_section(statistics: Statistics) -> Section:
    """Report which channels are massive, by ratio, agreement and stability."""
    found = statistics.channels()
    claims = [massive_sentence(statistics, "after", "image stream")]
    claims += [_stability(statistics), _same_set(statistics), _tokens(statistics, "after", "image")]
    if statistics.has("modulated"):
        claims.append(massive_sentence(statistics, "modulated", "AdaLN output, which blocks read"))
    tables = [_table(statistics, "after")]
    if statistics.has("text"):
        claims += [
            massive_sentence(statistics, "text", "text stream, padding left out"),
            _tokens(statistics, "text", "text"),
        ]
        tables.append(_table(statistics, "text"))
    names = [f"{sigma:.2f}" for sigma in statistics.sigmas]
    top = statistics["after.ratio"].max(2)
    overlap = _overlaps(statistics)
    blocks = range(len(top))
    figures = [
        Figure(
            "ratio.png",
            plots.heatmap(top, names, blocks, "sigma", "block"),
            "Mean |z| of the largest channel over the median channel's, after each block at each"
            f" step. A channel can be massive from {RATIO:g} on.",
        ),
        Figure(
            "overlap.png",
            plots.heatmap(overlap, blocks, blocks, "block", "block"),
            f"Share of the {TOP} largest channels that two blocks have in common.",
        ),
    ]
    numbers = {
        "definition": {"ratio": RATIO, "tokens": TOKENS, "conditions": CONDITIONS},
        "conditions": found.conditions,
        "massive": {str(k): found.massive(k) for k in blocks},
        "largest_ratio": top,
        "overlap": overlap,
        "sigmas": statistics.sigmas,
        "after": _numbers(statistics, "after"),
    }
    if statistics.has("text"):
        numbers["text"] = _numbers(statistics, "text")
    return Section("Which channels are massive", claims, tables, figures, numbers)


def massive_sentence(statistics: Statistics, point: str, name: str) -> str:
    """Say which channels of a stream are massive, or that none is."""
    found = statistics.channels(point)
    massive = found.blocks_with_massive()
    definition = (
        f"mean |z| at least {RATIO:g} times the median channel's on {TOKENS:.0%} of the tokens, in"
        f" {CONDITIONS:.0%} of {found.conditions} prompts, seeds and steps"
    )
    if not massive:
        block, channel = divmod(int(found.ratio.argmax()), found.ratio.shape[1])
        differs = " The papers' large models have one or two." if point == "after" else ""
        return (
            f"Massive channels of the {name}: none ({definition}). The largest is channel"
            f" {channel} after block {block}: its mean |z| is {found.ratio[block, channel]:.1f}"
            f" times the median channel's, and it is massive in"
            f" {found.agreement[block, channel]:.0%}.{differs}"
        )
    sets: dict[tuple[int, ...], list[int]] = {}
    for block in massive:
        sets.setdefault(tuple(sorted(found.massive(block))), []).append(block)
    parts = "; ".join(
        f"{', '.join(map(str, channels))} after {_ranges(blocks)}"
        for channels, blocks in sets.items()
    )
    return f"Massive channels of the {name} ({definition}): {parts}."


def _ranges(blocks: Sequence[int]) -> str:
    """Return block numbers in words, such as "blocks 1-3, 7"."""
    parts: list[list[int]] = []
    for block in blocks:
        if parts and parts[-1][-1] == block - 1:
            parts[-1].append(block)
        else:
            parts.append([block])
    words = [f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts]
    return ("blocks " if len(blocks) > 1 else "block ") + ", ".join(words)


def _stability(statistics: Statistics) -> str:
    """Say whether the same channel is the largest at every step, and on how many tokens."""
    leaders = statistics["after.ratio"].argmax(2)  # [L, S]
    block = int(statistics["after.ratio"].mean(1).max(1).argmax())
    counts = np.bincount(leaders[block])
    channel = int(counts.argmax())
    agreement = statistics["after.agreement"][block, :, channel]
    return (
        f"After block {block}, where the ratio is highest, channel {channel} is the largest at"
        f" {counts.max()} of {len(statistics.sigmas)} steps, and at {RATIO:g} times the median on"
        f" {agreement.min():.0%} to {agreement.max():.0%} of the tokens, depending on the step."
    )


def _overlaps(statistics: Statistics) -> NDArray[np.float64]:
    """Return the share [L, L] of the `TOP` largest channels that two blocks have in common."""
    found = statistics.channels()
    sets = [set(found.largest(k)[:TOP]) for k in range(len(found.ratio))]
    return np.array([[len(a & b) / TOP for b in sets] for a in sets])


def _same_set(statistics: Statistics) -> str:
    overlap = _overlaps(statistics)
    neighbours = np.diagonal(overlap, 1)
    return (
        f"Neighbouring blocks share {neighbours.mean():.0%} of their {TOP} largest channels"
        f" (at least {neighbours.min():.0%}); the first and the last block share"
        f" {overlap[0, -1]:.0%}."
    )


def _tokens(statistics: Statistics, point: str, name: str) -> str:
    tokens = statistics[f"{point}.tokens"].mean(1)  # [L, T]
    outliers = {k: np.flatnonzero(row >= TOKEN_RATIO) for k, row in enumerate(tokens)}
    largest = np.unravel_index(tokens.argmax(), tokens.shape)
    top = f"the largest, token {largest[1]} after block {largest[0]}, has {tokens.max():.1f} times"
    if not any(len(found) for found in outliers.values()):
        return (
            f"No {name} token is an outlier (mean |z| at least {TOKEN_RATIO:g} times the median"
            f" token's): {top} the median."
        )
    where = "; ".join(
        f"{', '.join(map(str, found[:8]))} after block {k}"
        for k, found in outliers.items()
        if len(found)
    )
    return f"Outliers among {name} tokens, such as attention sinks: {where}; {top}."


def _table(statistics: Statistics, point: str) -> Table:
    found = statistics.channels(point)
    quantiles = statistics[f"{point}.quantiles"].mean(1)
    rows = []
    for k in range(len(found.ratio)):
        if not statistics[f"{point}.count"][k].any():
            continue  # in some families the last block returns no text
        for c in found.largest(k)[:2]:
            sign = statistics[f"{point}.mean"][k, :, c].mean()
            share = abs(sign) / max(statistics[f"{point}.mean_abs"][k, :, c].mean(), 1e-12)
            rows.append(
                [
                    k,
                    c,
                    float(found.ratio[k, c]),
                    float(statistics[f"{point}.agreement"][k, :, c].mean()),
                    float(found.agreement[k, c]),
                    *map(float, quantiles[k, c]),
                    float(statistics[f"{point}.max_abs"][k, :, c].max()),
                    f"{'+' if sign > 0 else '-'} ({share:.0%})",
                ]
            )
    head = ["block", "channel", "ratio", "tokens", "conditions"]
    head += ["median |z|", "90 %", "99 %", "max", "sign"]
    return Table([f"{'image' if point == 'after' else point} {head[0]}", *head[1:]], rows)


def _numbers(statistics: Statistics, point: str) -> dict[str, object]:
    found = statistics.channels(point)
    return {
        str(k): [
            {
                "channel": c,
                "ratio": statistics[f"{point}.ratio"][k, :, c],
                "tokens": statistics[f"{point}.agreement"][k, :, c],
                "conditions": statistics[f"{point}.massive"][k, :, c],
                "mean_abs": statistics[f"{point}.mean_abs"][k, :, c],
            }
            for c in found.largest(k)[:TOP]
        ]
        for k in range(len(found.ratio))
    }


def location_section(
    maps: NDArray[np.floating],
    clean: NDArray[np.floating],
    sigmas: Sequence[float],
    block: int,
    channels: Sequence[int],
    prompt: str,
    foreground: Found | None = None,
) -> Section:
    """Report where channels are large in the image.

    Args:
        maps: z [S, channels, rows, columns] over the steps.
        clean: the clean image that each step implies, [S, H, W, 3].
        sigmas: the sigma of each step.
        block: the block that `maps` were taken after.
        channels: the channels of `maps`.
        prompt: the prompt that was drawn.
        foreground: what their clusters show; None for a bundle.
    """
    shown = np.unique(np.linspace(0, len(sigmas) - 1, min(8, len(sigmas))).round().astype(int))
    rows = {"image": clean[shown]}
    for i, channel in enumerate(channels):
        rows[f"|z| {channel}"] = np.abs(maps[shown, i])
    size = np.abs(maps)
    variation = size.std((2, 3)) / size.mean((2, 3)).clip(1e-9)  # [S, channels]
    grey = clean.mean(3)
    height, width = maps.shape[2:]
    cells = grey.reshape(len(grey), height, grey.shape[1] // height, width, -1).mean((2, 4))
    fits = [
        [
            float(np.corrcoef(size[s, i].ravel(), cells[-1].ravel())[0, 1])
            for s in range(len(sigmas))
        ]
        for i in range(len(channels))
    ]
    claims = [
        f"Channel {c} after block {block}: its |z| varies over tokens by {variation[0, i]:.0%} of"
        f" its mean at the first step and {variation[-1, i]:.0%} at the last; its correlation with"
        f" the final image's brightness is {fits[i][0]:+.2f} and {fits[i][-1]:+.2f}."
        for i, c in enumerate(channels)
    ]
    figure = Figure(
        "maps.png",
        plots.gallery(rows, [f"{sigmas[s]:.2f}" for s in shown]),
        f"“{prompt}”: the clean image that each step implies, and |z| of channels after block"
        f" {block} on its tokens, from the first step (left; sigma above) to the last.",
    )
    numbers = {"block": block, "channels": list(channels), "sigmas": sigmas}
    numbers |= {"variation": variation.T, "correlation_with_brightness": fits}
    figures = [figure]
    if foreground is not None:
        claims.append(foreground.claim)
        figures.append(foreground.figure)
        numbers |= {"foreground": foreground.numbers}
    return Section("Where in the image they are", claims, (), figures, numbers)
