"""Part 6 of the report: what goes wrong as w grows: over-sharpening, clipping, colour shift."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from intaglio.analysis.experiments.baselines import names_at
from intaglio.analysis.experiments.gallery import Gallery, Pictures
from intaglio.analysis.quality import intervals, measures
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure, Section, Table
from intaglio.torch_reference.guidance import Method

SEED = 60_000
# Multiples of the setting's own w.
FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
SHOWN = 12


def failures_section(gallery: Gallery, setting: Method, images: int) -> Section:
    """Draw the same seeds at growing w and report what changes."""
    seeds = range(SEED, SEED + images)
    drawn = {}
    for factor in FACTORS:
        weight = setting.weight * factor
        drawn[weight] = gallery.draw(replace(setting, weight=weight), seeds)
    base = drawn[0.0]
    curves = {weight: _measures(base, pictures) for weight, pictures in drawn.items()}
    gaps = {
        name: {w: intervals.paired_difference(base[name], p[name]) for w, p in drawn.items() if w}
        for name in ("high_frequency_energy", "clipped")
    }
    rows = [[w, *(str(value) for value in row.values())] for w, row in curves.items()]
    weights = list(curves)
    lines = {
        name.replace("_", " "): [curves[w][name].measured for w in weights] for name in curves[0.0]
    }
    bands = {
        name.replace("_", " "): (
            [curves[w][name].low for w in weights],
            [curves[w][name].high for w in weights],
        )
        for name in curves[0.0]
    }
    figures = [
        Figure(
            "failures.png",
            plots.gallery({f"w {w:g}": p.images[:SHOWN] for w, p in drawn.items()}),
            f"The same seeds at growing w (cfg_scale {setting.cfg_scale:g}).",
        ),
        Figure(
            "failures-curves.png",
            plots.panels(weights, lines, bands, "w"),
            "What changes as w grows, with 95 % intervals.",
        ),
    ]
    return Section(
        "Failure cases",
        _claims(curves, gaps, setting),
        [Table(["w", *(name.replace("_", " ") for name in curves[0.0])], rows)],
        figures,
        {
            "images": images,
            "by_w": {str(w): row for w, row in curves.items()},
            "minus_w_0": {
                name: {str(w): gap for w, gap in of.items()} for name, of in gaps.items()
            },
        },
    )


def _measures(base: Pictures, pictures: Pictures) -> dict[str, intervals.Interval]:
    drift = measures.color_drift(base["lab"], pictures["lab"])
    found = {
        "high_frequency_energy": intervals.mean_interval(pictures["high_frequency_energy"]),
        "laplacian_variance": intervals.mean_interval(pictures["laplacian_variance"]),
        "clipped": intervals.mean_interval(pictures["clipped"]),
        "saturation": intervals.mean_interval(pictures["saturation"]),
        "color_drift": intervals.mean_interval(drift),
    }
    if "class" in pictures.values:
        same = (pictures["class"] == base["class"]).astype(np.float64)
        found["class_agreement"] = intervals.share_interval(same)
    return found


def _claims(
    curves: dict[float, dict[str, intervals.Interval]],
    gaps: dict[str, dict[float, intervals.Interval]],
    setting: Method,
) -> list[str]:
    """Say at which w each measure differs from the same seeds without DG."""
    claims = []
    last = setting.weight * FACTORS[-1]
    names = {
        "high_frequency_energy": "Over-sharpening: high-frequency energy",
        "clipped": "Clipping: the share of pixels out of range",
    }
    for name, words in names.items():
        start = curves[0.0][name]
        left = [w for w, gap in gaps[name].items() if gap.low > 0]
        claims.append(
            f"{words} goes from {start.measured:.3g} without DG to"
            f" {curves[last][name].measured:.3g} at w {last:g}; "
            + (
                f"it is measurably higher from w {min(left, key=abs):g} on."
                if left
                else "no w is measurable."
            )
        )
    drift = {w: curves[w]["color_drift"].measured for w in (setting.weight, last)}
    claims.append(
        "Colour shift: the mean colour moves by delta E "
        + " and ".join(f"{value:.2f} at w {w:g}" for w, value in drift.items())
        + " (about 2 can be seen)."
    )
    if "class_agreement" in curves[last]:
        claims.append(
            f"The judge's class stays that of {names_at(setting.cfg_scale).base_in_words} in"
            f" {curves[setting.weight]['class_agreement'].measured:.0%} at the setting's w and"
            f" {curves[last]['class_agreement'].measured:.0%} at w {last:g}."
        )
    return claims
