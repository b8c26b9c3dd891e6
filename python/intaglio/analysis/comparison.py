"""Part 5's page: what was measured of each of `arms`, and its difference to CFG alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intaglio.analysis import arms, plots, quality
from intaglio.analysis.gallery import Gallery, Pictures
from intaglio.analysis.judge import Judge
from intaglio.analysis.methods import Method, Weaker
from intaglio.analysis.page import Figure, Section, Table

SHOWN = 12
RESAMPLES = 200
# Pictures that precision and recall are measured with, at the most.
COVERED = 2000


def comparison(gallery: Gallery, setting: Method, weaker: Weaker | None, images: int) -> Section:
    """Draw `images` pictures of each main arm on the same seeds, and compare."""
    found = arms.pilot(gallery, setting, weaker)
    methods = arms.arms(gallery, setting, found, weaker)
    drawn = {
        name: gallery.draw(method, arms.seeds(name, images), omega=method.guided)
        for name, method in methods.items()
    }
    values = {name: measured(pictures, gallery.judge) for name, pictures in drawn.items()}
    gaps = {
        name: against(drawn["cfg"], pictures, gallery.judge)
        for name, pictures in drawn.items()
        if name != "cfg"
    }
    columns = list(values["cfg"])
    table = Table(
        ["arm", "cfg_scale", "w", "images", *columns],
        [
            [name, methods[name].cfg_scale, methods[name].weight, len(drawn[name])]
            + [row.get(column, float("nan")) for column in columns]
            for name, row in values.items()
        ],
    )
    gap_columns = list(gaps["none"])
    gap_table = Table(
        ["minus CFG alone", *gap_columns],
        [[name, *map(str, row.values())] for name, row in gaps.items()],
    )
    figures = [
        Figure(
            "arms.png",
            plots.gallery({name: pictures.images[:SHOWN] for name, pictures in drawn.items()}),
            "The same seeds and prompts with each way to guide.",
        ),
        Figure(
            "arms-intervals.png",
            plots.intervals({m: {n: row[m] for n, row in gaps.items()} for m in gap_columns}),
            "Differences to CFG alone on the same seeds, with 95 % intervals.",
        ),
    ]
    numbers: dict[str, Any] = {
        "omega": found.omega,
        "norms": found.norms,
        "arms": {
            name: {"method": str(methods[name]), "images": len(drawn[name])} | row
            for name, row in values.items()
        },
        "minus_cfg": gaps,
    }
    claims = _claims(setting, found, values, gaps, gallery.judge is not None)
    return Section(
        "Detail Guidance against CFG alone", claims, [table, gap_table], figures, numbers
    )


def measured(pictures: Pictures, judge: Judge | None) -> dict[str, float]:
    """Means over pictures, and distances of the set."""
    values: dict[str, float] = {}
    if judge is not None:
        features = pictures["features"]
        precision, recall = quality.precision_recall(judge.neighbours, features[:COVERED])
        values = {
            "frechet": quality.frechet(quality.moments(features), judge.moments),
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "accuracy": float(_right(pictures, judge).mean()),
        }
    values |= {name: float(pictures[name].mean()) for name in quality.DETAIL}
    values |= {name: float(pictures[name].mean()) for name in ("saturation", "clipped")}
    if "omega" in pictures.values:
        values["omega"] = float(pictures["omega"].mean())
    return values


def _right(pictures: Pictures, judge: Judge) -> NDArray[np.float64]:
    """1 where the judge sees what the prompt says [N]."""
    return np.asarray(pictures["class"] == judge.labels[pictures["prompt"]], np.float64)


def against(base: Pictures, other: Pictures, judge: Judge | None) -> dict[str, quality.Interval]:
    """Paired differences other - base over the seeds that both have."""
    n = min(len(base), len(other))
    gaps: dict[str, quality.Interval] = {}
    if judge is not None:
        reference = judge.moments
        gaps["frechet"] = quality.bootstrap_difference(
            lambda features: quality.frechet(quality.moments(features), reference),
            base["features"][:n],
            other["features"][:n],
            RESAMPLES,
            seed=0,
        )
        covered = [
            quality.precision_recall(judge.neighbours, pictures["features"][: min(n, COVERED)])
            for pictures in (base, other)
        ]
        for name, pair in zip(("precision", "recall"), zip(*covered, strict=True), strict=True):
            gaps[name] = quality.paired_share_difference(*pair)
        right = [_right(pictures, judge)[:n] for pictures in (base, other)]
        gaps["accuracy"] = quality.paired_share_difference(*right)
    for name in (*quality.DETAIL, "saturation", "clipped"):
        gaps[name] = quality.paired_difference(base[name][:n], other[name][:n])
    return gaps


def verdict(gap: quality.Interval, better: Callable[[float], bool]) -> str:
    """better, worse or not distinguishable, by whether the interval has zero inside."""
    if gap.low <= 0 <= gap.high:
        return "not distinguishable from"
    return "better than" if better(gap.measured) else "worse than"


def _claims(
    setting: Method,
    found: arms.Pilot,
    values: Mapping[str, Mapping[str, float]],
    gaps: Mapping[str, Mapping[str, quality.Interval]],
    judged: bool,
) -> list[str]:
    claims = [
        f"Effective guidance of cfg_scale {setting.cfg_scale:g} with w {setting.weight:g}:"
        f" omega {found.omega:.3f}, where CFG alone has {setting.cfg_scale:g}. The other negatives'"
        " weights make their terms as long as DG's on the clean image, along runs of CFG alone;"
        " their omega is in the table and is not DG's. DG's setting may have been searched for on"
        " this model; of the others nothing was.",
    ]
    if not judged:
        return [
            *claims,
            "No judge was given, so only detail was compared, which rewards noise too.",
        ]
    for name in ("cfg+dg", "cfg at omega", "cfg+random"):
        gap = gaps[name]["frechet"]
        distance = values[name]["frechet"]
        claims.append(
            f"{name}: Fréchet distance {distance:.2f}, of CFG alone on the same seeds"
            f" {distance - gap.measured:.2f}; the difference is {gap}:"
            f" {verdict(gap, lambda value: value < 0)} CFG alone."
        )
    claims.append(
        "Fréchet distances of fewer images come out larger: compare them between arms of as many"
        " images only. The differences are over the seeds that both have."
    )
    dg = gaps["cfg+dg"]["frechet"]
    draws = [gaps[name]["frechet"] for name in gaps if name.startswith("cfg+random as far")]
    claims.append(
        "Random channels at the w that moves them as far, a draw each: "
        + "; ".join(f"{gap}, {verdict(gap, lambda value: value < 0)} CFG alone" for gap in draws)
        + "."
    )
    random = [gaps["cfg+random"]["frechet"], *draws]
    if dg.high < 0 and any(gap.high < 0 for gap in random):
        claims.append("Random channels can help too: the gain is not of these channels alone.")
    accuracy = gaps["cfg+dg"]["accuracy"]
    claims.append(
        f"Class accuracy of cfg+dg: difference {accuracy},"
        f" {verdict(accuracy, lambda value: value > 0)} CFG alone."
    )
    for name in gaps:
        if name in ("cfg+blurred", "cfg+skip-layer", "cfg+autoguidance", "dg"):
            gap = gaps[name]["frechet"]
            claims.append(
                f"{name}: difference {gap}, {verdict(gap, lambda value: value < 0)} CFG alone."
            )
    return claims
