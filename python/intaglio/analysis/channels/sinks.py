"""Where the image tokens' attention goes: to which kinds of keys, and whether some are sinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intaglio.analysis.channels.attention import KINDS
from intaglio.analysis.channels.recorder import SINK, Statistics
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure
from intaglio_export.calibration.massive import CONDITIONS

SHOWN = 12  # keys


def sinks(statistics: Statistics) -> dict[int, list[int]]:
    """Return the keys that are sinks, by block, for blocks that have some.

    A sink gets at least SINK times an equal share of the image tokens' attention, in CONDITIONS of
    the prompts, seeds and steps.
    """
    often = statistics["attention.sinks"].mean(1) >= CONDITIONS
    return {k: np.flatnonzero(row).tolist() for k, row in enumerate(often) if row.any()}


def attention_claims(statistics: Statistics) -> list[str]:
    """Say how attention is shared between the kinds of keys, and which keys are sinks."""
    shares = statistics["attention.by_kind"].mean(1)  # [L, 3]
    parts = [
        f"{shares[:, i].min():.0%} to {shares[:, i].max():.0%} to {name}"
        for i, name in enumerate(("image tokens", "the prompt's tokens", "padding"))
        if shares[:, i].any()
    ]
    return [
        f"Of their attention, image tokens give {_list(parts)}, depending on the block.",
        _sinks_sentence(statistics),
    ]


def _list(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _sinks_sentence(statistics: Statistics) -> str:
    found = sinks(statistics)
    mass = statistics["attention.mass"].mean(1)  # [L, keys]
    count = int(statistics["attention.count"].sum(1).max())
    definition = (
        f"at least {SINK:g} times an equal share of the image tokens' attention, in"
        f" {CONDITIONS:.0%} of {count} prompts, seeds and steps"
    )
    if found:
        where = "; ".join(
            f"{_list([f'{_name(statistics, key)} ({mass[k, key]:.0%})' for key in keys[:8]])}"
            f" in block {k}"
            for k, keys in found.items()
        )
        return f"Attention sinks ({definition}): {where}."
    block, key = np.unravel_index(mass.argmax(), mass.shape)
    some = statistics["attention.any_sink"].mean()
    return (
        f"Attention sinks: none ({definition}). The key with the most attention is"
        f" {_name(statistics, int(key))} in block {block}, with"
        f" {mass[block, key] * mass.shape[1]:.1f} times an equal share; in {some:.0%} of the blocks"
        " and conditions some key has as much as a sink."
    )


def _name(statistics: Statistics, key: int) -> str:
    """Return a key's number, and what it is for most prompts."""
    kinds = statistics["attention.kinds"].mean((0, 1))[:, key]
    return f"{KINDS[int(kinds.argmax())]} key {key}"


def attention_figures(statistics: Statistics) -> list[Figure]:
    """Draw the shares of the kinds of keys and of the top key, and the keys with most attention."""
    shares = statistics["attention.by_kind"].mean(1)
    mass = statistics["attention.mass"].mean(1)
    keys = np.sort(np.argsort(-mass.max(0))[:SHOWN])
    lines = {name: shares[:, i].tolist() for i, name in enumerate(KINDS) if shares[:, i].any()}
    lines["top key"] = statistics["attention.top"].mean(1).tolist()
    blocks = range(len(mass))
    return [
        Figure(
            "attention.png",
            plots.curves(blocks, lines, "block", "share of attention"),
            "The image tokens' attention by kind of key, and that of the key with the most.",
        ),
        Figure(
            "attention-keys.png",
            plots.heatmap(
                mass[:, keys].T * mass.shape[1],
                blocks,
                [_name(statistics, int(key)) for key in keys],
                "block",
                "",
            ),
            f"The {len(keys)} keys with the most attention, as multiples of an equal share. A key"
            f" can be a sink from {SINK:g} on.",
        ),
    ]


def attention_numbers(statistics: Statistics) -> dict[str, Any]:
    """Return what the claims are made of; the mass of each key is a mean over steps too."""
    shares: NDArray[np.float64] = statistics["attention.by_kind"].mean(1)
    return {
        "definition": {"equal_shares": SINK, "conditions": CONDITIONS},
        "sinks": {str(k): keys for k, keys in sinks(statistics).items()},
        "by_kind": {name: shares[:, i] for i, name in enumerate(KINDS)},
        "top": statistics["attention.top"].mean(1),
        "top_kind": statistics["attention.top_kind"].mean(1),
        "mass": statistics["attention.mass"].mean(1),
    }
