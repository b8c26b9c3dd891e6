"""Part 7: which settings to use: a search with a fixed budget, then a confirmation on other seeds.

Stages: block and w on a grid; windows and keep schedules of the best; the best of all against
CFG alone and random channels on seeds that the search has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intaglio.analysis import arms, plots, quality
from intaglio.analysis.comparison import against, measured, verdict
from intaglio.analysis.gallery import Gallery
from intaglio.analysis.methods import Method, Suppressed
from intaglio.analysis.page import Figure, Section, Table
from intaglio_export.calibration.massive import ChannelStatistics

SEED, CONFIRM_SEED = 40_000, 70_000
# Pictures of the confirmation, at the most.
CONFIRMED = 500
WEIGHTS = (1.0, 2.0)
WINDOWS = ((0.0, 0.5), (0.5, 1.0))
KEEPS = ((0.5, 0.5), (1.0, 0.0))
BLOCKS = 3
# Where no channel is massive, this many of the largest are tried.
LARGEST = 2


@dataclass(frozen=True)
class Row:
    """A setting that was tried: its figures, and its cost in forwards of CFG alone."""

    method: Method
    values: dict[str, float]
    cost: float

    @property
    def name(self) -> str:
        how = self.method.negative
        if not isinstance(how, Suppressed):
            return "CFG alone"
        keep = "" if how.keep == (0.0, 0.0) else f" keep {how.keep[0]:g}:{how.keep[1]:g}"
        start, end = self.method.window
        window = "" if (start, end) == (0.0, 1.0) else f" window {start:g}:{end:g}"
        channels = ",".join(map(str, how.channels[:4])) + (",…" if how.channels[4:] else "")
        return f"m {how.block} ({channels}) w {self.method.weight:g}{window}{keep}"


def cost(method: Method, blocks: int) -> float:
    """Of a step in forwards of CFG alone, or of the conditional branch where there is no CFG: the
    degraded rows run through the blocks after m only (docs/architecture.md)."""
    rows = 2 if method.cfg_scale != 1.0 else 1
    if not isinstance(method.negative, Suppressed) or not method.weight:
        return 1.0
    share = method.window[1] - method.window[0]
    return 1 + share * (blocks - 1 - method.negative.block) / blocks / rows


class Search:
    """Tries settings on one set of seeds, and ranks them by Fréchet distance."""

    def __init__(self, gallery: Gallery, images: int) -> None:
        self.gallery = gallery
        self.images = images
        self.rows: list[Row] = []

    def run(self, method: Method) -> Row:
        """Measure a setting, once."""
        for row in self.rows:
            if row.method == method:
                return row
        pictures = self.gallery.draw(method, range(SEED, SEED + self.images))
        values = measured(pictures, self.gallery.judge)
        self.rows.append(Row(method, values, cost(method, self.gallery.model.blocks)))
        return self.rows[-1]

    def best(self, methods: Sequence[Method]) -> list[Row]:
        """All of `methods`, the best first."""
        return sorted((self.run(m) for m in methods), key=lambda row: row.values["frechet"])


def candidates(statistics: ChannelStatistics, cfg_scale: float) -> list[Method]:
    """The grid of blocks and weights, with massive channels, or the largest where none is."""
    blocks = len(statistics.ratio)
    chosen = np.unique(np.linspace(1, blocks - 2, BLOCKS).round().astype(int)).clip(0, blocks - 1)
    methods = []
    for block in map(int, chosen):
        channels = statistics.massive(block) or statistics.largest(block)[:LARGEST]
        for weight in WEIGHTS:
            suppressed = Suppressed(block, tuple(sorted(channels)))
            methods.append(Method(cfg_scale, weight, suppressed))
    return methods


def search(
    gallery: Gallery,
    statistics: ChannelStatistics,
    cfg_scale: float,
    given: Method | None,
    images: int,
    confirm: int,
) -> tuple[Section, dict[str, Any]]:
    """The section, and the settings file's content.

    `given` is a known setting, tried with the rest. Needs a judge.
    """
    found = Search(gallery, images)
    baseline = found.run(Method(cfg_scale))
    grid = candidates(statistics, cfg_scale)
    if given is not None and given.cfg_scale == cfg_scale:
        grid.append(given)
    ranked = found.best(grid)
    leader = ranked[0].method
    assert isinstance(leader.negative, Suppressed)
    refined = [replace(leader, window=window) for window in WINDOWS]
    refined += [replace(leader, negative=replace(leader.negative, keep=keep)) for keep in KEEPS]
    chosen = found.best([*(row.method for row in ranked), *refined])[0]
    evidence = _confirm(gallery, chosen.method, min(confirm, CONFIRMED))
    settings = settings_of(chosen.method, gallery, evidence)
    if not recommended(evidence):
        settings["evidence"]["dg_scale_tried"] = settings["dg_scale"]
        settings["dg_scale"] = 0.0
    section = _section(found, baseline, chosen, evidence, settings)
    return section, settings


def _confirm(gallery: Gallery, chosen: Method, images: int) -> dict[str, Any]:
    """CFG alone, the setting, and random channels in their place, on other seeds."""
    assert isinstance(chosen.negative, Suppressed)
    random = arms.random_channels(chosen.negative, gallery.model.adapter.channels)
    seeds = range(CONFIRM_SEED, CONFIRM_SEED + images)
    drawn = {
        "cfg": gallery.draw(Method(chosen.cfg_scale), seeds),
        "cfg_dg": gallery.draw(chosen, seeds),
        "cfg_random": gallery.draw(replace(chosen, negative=random), seeds),
    }
    evidence: dict[str, Any] = {"images": images, "steps": gallery.steps, "seed": CONFIRM_SEED}
    for name, pictures in drawn.items():
        evidence[name] = measured(pictures, gallery.judge)
        if name != "cfg":
            evidence[f"{name}_minus_cfg"] = against(drawn["cfg"], pictures, gallery.judge)
    return evidence


def settings_of(method: Method, gallery: Gallery, evidence: dict[str, Any]) -> dict[str, Any]:
    """What `intaglio export --settings` reads."""
    how = method.negative
    assert isinstance(how, Suppressed)
    settings: dict[str, Any] = {
        "block": how.block,
        "channels": list(how.channels),
        "keep": list(how.keep) if how.keep[0] != how.keep[1] else how.keep[0],
        "dg_scale": method.weight,
        "dg_window": list(method.window),
        "cfg_scale": method.cfg_scale,
        "steps": gallery.steps,
        "evidence": evidence,
    }
    if how.ref is not None:
        settings["ref"] = list(how.ref)
    return settings


def recommended(evidence: dict[str, Any]) -> bool:
    """Whether the setting made pictures better than CFG alone, by the whole interval."""
    gap: quality.Interval = evidence["cfg_dg_minus_cfg"]["frechet"]
    return gap.high < 0


def _section(
    found: Search, baseline: Row, chosen: Row, evidence: dict[str, Any], settings: dict[str, Any]
) -> Section:
    frontier: list[Row] = []
    for row in sorted(found.rows, key=lambda row: (row.cost, row.values["frechet"])):
        if not frontier or row.values["frechet"] < frontier[-1].values["frechet"]:
            frontier.append(row)
    gap, random = (evidence[f"{n}_minus_cfg"]["frechet"] for n in ("cfg_dg", "cfg_random"))
    claims = [
        f"{len(found.rows)} settings were tried with {found.images} images each; the best by"
        f" Fréchet distance: {chosen.name}, at {chosen.cost:.2f} times the cost of CFG alone.",
        f"On {evidence['images']} images of other seeds its difference to CFG alone is {gap}:"
        f" {verdict(gap, lambda value: value < 0)} CFG alone; as many random channels: {random},"
        f" {verdict(random, lambda value: value < 0)} CFG alone.",
        "On the frontier of quality against cost: " + "; ".join(row.name for row in frontier) + ".",
        "settings.json has it, for intaglio export --settings."
        if recommended(evidence)
        else "It is not recommended: CFG alone is as good, as far as this can tell. settings.json"
        " keeps dg_scale at 0; the setting that was tried is in its evidence.",
    ]
    columns = ["frechet", "precision", "recall", "accuracy", "high_frequency_energy", "clipped"]
    ordered = sorted(found.rows, key=lambda row: row.values["frechet"])
    table = Table(
        ["setting", "cost", *columns],
        [[row.name, row.cost, *(row.values[c] for c in columns)] for row in ordered],
    )
    figure = Figure(
        "frontier.png",
        plots.points(
            [(row.cost, row.values["frechet"], row.name) for row in found.rows],
            "cost of a step, CFG alone = 1",
            "Fréchet distance",
            [(row.cost, row.values["frechet"]) for row in frontier],
            (baseline.values["frechet"], "CFG alone"),
        ),
        "Quality against cost of every setting that was tried; later blocks are cheaper.",
    )
    numbers = {
        "rows": [{"setting": row.name, "cost": row.cost} | row.values for row in ordered],
        "settings": settings,
        "frontier": [row.name for row in frontier],
    }
    return Section("Settings", claims, [table], [figure], numbers)
