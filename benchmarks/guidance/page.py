"""The report of the comparison: its sentences, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.guidance.comparison import SEARCH_SEED, Row, Sizes, Tried
from benchmarks.guidance.methods import BASE
from intaglio.analysis.experiments.search import verdict
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure, Section, Table
from intaglio.torch_reference.guidance import Suppressed

SHOWN = 12
INTERVALS = (
    "frechet", "precision", "recall", "accuracy", "high_frequency_energy", "laplacian_variance",
    "clipped",
)  # fmt: skip
WITHIN = 0.03  # of the base's time


def sections(
    tried: Sequence[Tried],
    rows: Sequence[Row],
    times: Mapping[str, Mapping[str, float]],
    sizes: Sizes,
    blocks: int,
) -> list[Section]:
    """Return the comparison and the search; `times` holds the ratios of each program by method."""
    return [_comparison(rows, times, sizes), _search(tried, sizes, blocks)]


def _comparison(
    rows: Sequence[Row], times: Mapping[str, Mapping[str, float]], sizes: Sizes
) -> Section:
    shown = ("accuracy", "high_frequency_energy", "clipped")
    head = ["method", "best setting", "steps", "rows x blocks"]
    head += [f"time, {program}" for program in times]
    head += ["Fréchet distance", f"minus {BASE}"]
    head += [part for name in shown for part in (name.replace("_", " "), f"minus {BASE}")]
    table = Table(
        head,
        [
            [row.name, row.setting.words, row.steps, f"{row.row_blocks:.0f}"]
            + [_ratio(times[program].get(row.name)) for program in times]
            + [
                cell
                for name in ("frechet", *shown)
                for cell in (row.values[name], str(row.gaps.get(name, "")))
            ]
            for row in rows
        ],
    )
    gaps = {name: {row.name: row.gaps[name] for row in rows if row.gaps} for name in INTERVALS}
    figures = [
        Figure(
            "methods-intervals.png",
            plots.intervals(gaps),
            f"Differences from {BASE} on the same seeds, with 95 % intervals.",
        ),
        Figure(
            "methods.png",
            plots.gallery({row.name: row.images[:SHOWN] for row in rows}),
            "The same seeds and prompts with each method.",
        ),
    ]
    numbers: dict[str, Any] = {
        row.name: {
            "setting": row.setting.words,
            "steps": row.steps,
            "row_blocks": row.row_blocks,
            "times": {program: found.get(row.name) for program, found in times.items()},
            "values": row.values,
            f"minus_{BASE}": row.gaps,
        }
        for row in rows
    }
    return Section(
        "Methods at equal cost", _claims(rows, times, sizes), [table], figures, {"methods": numbers}
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _claims(
    rows: Sequence[Row], times: Mapping[str, Mapping[str, float]], sizes: Sizes
) -> list[str]:
    off = {
        program: [name for name, ratio in found.items() if abs(ratio - 1) > WITHIN]
        for program, found in times.items()
    }
    claims = [
        f"Each method has the number of steps whose rows times blocks are nearest to those of the"
        f" model's own setting of {BASE} at its {sizes.steps} steps. Times are those of the"
        " denoising loop over that setting's: medians of runs that alternate. "
        + " ".join(
            f"More than {WITHIN:.0%} off in {program}: {', '.join(names) or 'no method'}."
            for program, names in off.items()
        ),
        f"Each method's setting has the smallest Fréchet distance of those in the search below. The"
        f" table has {sizes.images} images of each on other seeds, in bfloat16 too.",
    ]
    for measure, better in (("frechet", -1), ("accuracy", 1)):
        by: dict[str, list[str]] = {}
        for row in rows:
            if row.gaps:
                said = verdict(row.gaps[measure], lambda value, sign=better: value * sign > 0)
                by.setdefault(said, []).append(row.name)
        words = {"frechet": "Fréchet distance", "accuracy": "class accuracy"}[measure]
        claims.append(
            f"By {words}, "
            + "; ".join(f"{said} {BASE}: {', '.join(names)}" for said, names in by.items())
            + "."
        )
    claims.append(
        "So the order holds for this model, this budget and these grids. It does not carry over to"
        " large models: this one has no massive channels, and its pictures are of 32 x 32 pixels."
        f" The intervals are not corrected for {len(rows) - 1} comparisons, and more settings were"
        f" tried for {BASE} than for the others."
    )
    return claims


def _search(tried: Sequence[Tried], sizes: Sizes, blocks: int) -> Section:
    by_block: dict[int, float] = {}
    for one in tried:
        negative = one.setting.method.negative
        if one.method == BASE and isinstance(negative, Suppressed):
            value = one.values["frechet"]
            by_block[negative.block] = min(value, by_block.get(negative.block, value))
    found = ", ".join(f"{value:.2f} after block {m}" for m, value in sorted(by_block.items()))
    winner = min(by_block, key=lambda block: by_block[block])
    claims = [
        f"{len(tried)} settings with {sizes.tried} images each, from seed {SEARCH_SEED} on, in"
        " bfloat16 and at the same cost. The random channels move by as much as those of the best"
        f" setting of {BASE}, one setting for each draw.",
        f"{BASE} with the same channels has the distances {found}. The export's default is m ="
        f" {blocks // 2}, half of the {blocks} blocks; published run times imply m near 0.65 of"
        f" them, which is {round(0.65 * blocks)} here. Block {winner} is best here.",
    ]
    columns = ("frechet", "accuracy", "high_frequency_energy", "clipped")
    table = Table(
        ["method", "setting", "steps", *(name.replace("_", " ") for name in columns)],
        [
            [one.method, one.setting.words, one.steps, *(one.values[name] for name in columns)]
            for one in tried
        ],
    )
    numbers = [
        {"method": one.method, "setting": one.setting.words, "steps": one.steps} | one.values
        for one in tried
    ]
    return Section("The search", claims, [table], (), {"tried": numbers})
