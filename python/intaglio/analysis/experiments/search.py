"""Part 7 of the report: which settings to use, by a search and a confirmation on other seeds.

The search tries a grid of blocks and w, then windows and ma_keep schedules of the best setting. The
best of all is confirmed against CFG alone (or no guidance, for a model without CFG) and random
channels, on seeds that the search did not use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intaglio.analysis.experiments.baselines import names_at, random_channels
from intaglio.analysis.experiments.comparison import against, measured, verdict
from intaglio.analysis.experiments.gallery import Gallery
from intaglio.analysis.quality.intervals import Interval
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure, Section, Table
from intaglio.torch_reference.guidance import Method, Suppressed
from intaglio_export.calibration.massive import ChannelStatistics

SEED, CONFIRM_SEED = 40_000, 70_000
# At most this many pictures confirm the setting.
CONFIRMED = 500
WEIGHTS = (1.0, 2.0)
WINDOWS = ((0.0, 0.5), (0.5, 1.0))
MA_KEEPS = ((0.5, 0.5), (1.0, 0.0))
BLOCKS = 3
# If no channel is massive, this many of the largest are tried.
LARGEST = 2


@dataclass(frozen=True)
class Row:
    """A setting that was tried, its measures, and the cost of a step, which is 1 without DG."""

    method: Method
    values: dict[str, float]
    cost: float

    @property
    def name(self) -> str:
        """The setting in words."""
        how = self.method.negative
        if not isinstance(how, Suppressed):
            return names_at(self.method.cfg_scale).base_in_words
        keep = "" if how.ma_keep == (0.0, 0.0) else " keep {:g}:{:g}".format(*how.ma_keep)
        start, end = self.method.window
        window = "" if (start, end) == (0.0, 1.0) else f" window {start:g}:{end:g}"
        channels = ",".join(map(str, how.channels[:4])) + (",…" if how.channels[4:] else "")
        return f"m {how.block} ({channels}) w {self.method.weight:g}{window}{keep}"


def cost(method: Method, blocks: int) -> float:
    """Return the cost of a step relative to the same step without the negative branch.

    The degraded rows run only through the blocks after m (docs/architecture.md).
    """
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
        """Measure a setting, or return what was measured before."""
        for row in self.rows:
            if row.method == method:
                return row
        pictures = self.gallery.draw(method, range(SEED, SEED + self.images))
        values = measured(pictures, self.gallery.judge)
        self.rows.append(Row(method, values, cost(method, self.gallery.model.blocks)))
        return self.rows[-1]

    def best(self, methods: Sequence[Method]) -> list[Row]:
        """Measure `methods`, and return them with the best first."""
        return sorted((self.run(m) for m in methods), key=lambda row: row.values["frechet"])


def candidates(statistics: ChannelStatistics, cfg_scale: float) -> list[Method]:
    """Return a grid of blocks and weights, with the massive channels or else the largest."""
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
    """Search, and return the section and the content of the settings file.

    `given` is a known setting that is tried with the others. The gallery needs a judge.
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
    refined += [
        replace(leader, negative=replace(leader.negative, ma_keep=keep)) for keep in MA_KEEPS
    ]
    chosen = found.best([*(row.method for row in ranked), *refined])[0]
    evidence = _confirm(gallery, chosen.method, min(confirm, CONFIRMED))
    settings = settings_of(chosen.method, gallery, evidence)
    if not recommended(evidence):
        settings["evidence"]["dg_scale_tried"] = settings["dg_scale"]
        settings["dg_scale"] = 0.0
    section = _section(found, baseline, chosen, evidence, settings)
    return section, settings


def _confirm(gallery: Gallery, chosen: Method, images: int) -> dict[str, Any]:
    """Measure the setting without DG, with it, and with random channels, on other seeds."""
    assert isinstance(chosen.negative, Suppressed)
    random = random_channels(chosen.negative, gallery.model.adapter.channels)
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
    """Return the settings as `intaglio export --settings` reads them."""
    how = method.negative
    assert isinstance(how, Suppressed)
    settings: dict[str, Any] = {
        "block": how.block,
        "channels": list(how.channels),
        "keep": list(how.ma_keep) if how.ma_keep[0] != how.ma_keep[1] else how.ma_keep[0],
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
    """Return whether the whole interval says that the setting is better than without DG."""
    gap: Interval = evidence["cfg_dg_minus_cfg"]["frechet"]
    return gap.high < 0


def _section(
    found: Search, baseline: Row, chosen: Row, evidence: dict[str, Any], settings: dict[str, Any]
) -> Section:
    frontier: list[Row] = []
    for row in sorted(found.rows, key=lambda row: (row.cost, row.values["frechet"])):
        if not frontier or row.values["frechet"] < frontier[-1].values["frechet"]:
            frontier.append(row)
    gap, random = (evidence[f"{n}_minus_cfg"]["frechet"] for n in ("cfg_dg", "cfg_random"))
    base = baseline.name
    claims = [
        f"{len(found.rows)} settings were tried with {found.images} images each. The best by"
        f" Fréchet distance is {chosen.name}, at {chosen.cost:.2f} times the cost of {base}.",
        f"On {evidence['images']} images of other seeds its difference from {base} is {gap}:"
        f" {verdict(gap, lambda value: value < 0)} {base}. With as many random channels it is"
        f" {random}: {verdict(random, lambda value: value < 0)} {base}.",
        "On the frontier of quality against cost: " + "; ".join(row.name for row in frontier) + ".",
        "settings.json holds this setting for intaglio export --settings."
        if recommended(evidence)
        else f"The setting is not recommended, since no gain over {base} was measured."
        " settings.json has dg_scale 0, and the setting that was tried is in its evidence.",
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
            f"cost of a step, {base} = 1",
            "Fréchet distance",
            [(row.cost, row.values["frechet"]) for row in frontier],
            (baseline.values["frechet"], base),
        ),
        "Quality against cost of every setting that was tried; later blocks are cheaper.",
    )
    numbers = {
        "rows": [{"setting": row.name, "cost": row.cost} | row.values for row in ordered],
        "settings": settings,
        "frontier": [row.name for row in frontier],
    }
    return Section("Settings", claims, [table], [figure], numbers)
