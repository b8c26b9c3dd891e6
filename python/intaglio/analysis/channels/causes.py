"""Part 2 of the report: what causes massive channels: gates, the timestep, the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from intaglio.analysis.channels.recorder import Statistics
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure, Section, Table


def causes_section(
    statistics: Statistics,
    block: int,
    channels: Sequence[int],
    variance: dict[str, NDArray[np.float64]],
) -> Section:
    """Report the causes; `variance` is what `variance.explained` returns for the channels.

    It is empty for a bundle, whose inputs cannot be swapped.
    """
    profile = gates(statistics)
    claims = [_gate_sentence(profile)]
    sizes = {str(c): statistics["after.mean_abs"][block, :, c].tolist() for c in channels}
    median = np.median(statistics["after.mean_abs"][block], axis=1)
    for c in channels:
        first, last = (statistics["after.mean_abs"][block, s, c] for s in (0, -1))
        claims.append(
            f"Channel {c} after block {block}: mean |z| goes from {first:.3g} at the first step to"
            f" {last:.3g} at the last, while the median channel's goes from {median[0]:.3g} to"
            f" {median[-1]:.3g}."
        )
    claims.append(_papers_sentence(statistics, block, channels, variance))
    tables = []
    if variance:
        claims += [_variance_sentence(c, i, variance) for i, c in enumerate(channels)]
        tables.append(_variance_table(channels, variance))
    figures = [
        Figure(
            "timestep.png",
            plots.curves(
                statistics.sigmas,
                sizes | {"median channel": median.tolist()},
                "sigma",
                f"mean |z| after block {block}",
                falling=True,
            ),
            "The magnitude over the timestep, along unguided runs.",
        ),
        Figure(
            "gates.png",
            plots.curves(
                range(len(profile["correlation"])),
                {
                    f"{name} of channel {c}": profile[name][:, c].tolist()
                    for c in channels
                    for name in ("gate", "ratio")
                },
                "block",
                "over the median channel's",
            ),
            "The gate and z over the blocks, each relative to the median channel's.",
        ),
    ]
    numbers = {
        "block": block,
        "channels": list(channels),
        "rank_correlation_of_gate_and_z": profile["correlation"],
        "largest_8_in_common": profile["shared"],
        "gate_over_median": {str(c): profile["gate"][:, c] for c in channels},
        "z_over_median": {str(c): profile["ratio"][:, c] for c in channels},
        "mean_abs_by_step": sizes | {"median channel": median},
        "sigmas": statistics.sigmas,
        "variance_explained": variance,
    }
    return Section("Where they come from", claims, tables, figures, numbers)


def gates(statistics: Statistics) -> dict[str, NDArray[np.float64]]:
    """Compare the gate with z over the blocks.

    Returns:
        |alpha| and |z| over their median channel's [L, C], their rank correlation [L], and how many
        of the 8 largest channels they share [L].
    """
    alpha = statistics["gate.mean_abs"].mean(1)
    size = statistics["after.mean_abs"].mean(1)
    correlation = [stats.spearmanr(a, z).statistic for a, z in zip(alpha, size, strict=True)]
    shared = [
        len(set(np.argsort(-a)[:8]) & set(np.argsort(-z)[:8]))
        for a, z in zip(alpha, size, strict=True)
    ]
    return {
        "gate": alpha / np.median(alpha, axis=1, keepdims=True).clip(1e-12),
        "ratio": statistics["after.ratio"].mean(1),
        "correlation": np.nan_to_num(np.array(correlation)),
        "shared": np.array(shared, np.float64),
    }


def _gate_sentence(profile: dict[str, NDArray[np.float64]]) -> str:
    correlation = profile["correlation"]
    typical = float(np.median(correlation))
    word = "agree" if typical >= 0.7 else "agree in part" if typical >= 0.3 else "do not agree"
    return (
        f"The gate alpha and |z| {word} on the channels: over blocks, the rank correlation of"
        f" |alpha| with mean |z| after the block is {correlation.min():+.2f} to"
        f" {correlation.max():+.2f} (median {typical:+.2f}); of the 8 channels with the largest"
        f" gates, {profile['shared'].mean():.1f} on average are among the 8 largest of z."
    )


def _papers_sentence(
    statistics: Statistics,
    block: int,
    channels: Sequence[int],
    variance: dict[str, NDArray[np.float64]],
) -> str:
    """Say whether two findings of arXiv 2510.11538 on large models hold here: |z| grows as t goes
    to 0, and hardly depends on the prompt."""
    sizes = statistics["after.mean_abs"][block][:, list(channels)]
    grows = bool((sizes[-1] > sizes[0]).all())
    falls = bool((sizes[-1] < sizes[0]).all())
    word = "grows" if grows else "falls" if falls else "grows in some channels and falls in others"
    sentence = (
        "The papers report of large models that |z| grows as t goes to 0. Here it"
        f" {word}: {'the same' if grows else 'it differs'}."
    )
    prompt = next((shares for name, shares in variance.items() if "prompt" in name), None)
    if prompt is None:
        return sentence
    little = float(prompt.max()) < 0.1
    return sentence + (
        " They report that it hardly depends on the prompt; here the prompt explains at most"
        f" {prompt.max():.0%} of the variance: {'the same' if little else 'it differs'}."
    )


def _variance_sentence(channel: int, i: int, variance: dict[str, NDArray[np.float64]]) -> str:
    parts = ", ".join(f"{name} {shares[i]:.0%}" for name, shares in variance.items())
    return f"Of the variance of channel {channel}'s mean |z|: {parts}."


def _variance_table(channels: Sequence[int], variance: dict[str, NDArray[np.float64]]) -> Table:
    rows = [
        [c, *(float(shares[i]) for shares in variance.values())] for i, c in enumerate(channels)
    ]
    return Table(["channel", *(f"variance by {name}" for name in variance)], rows)
