"""Part 5 of the report: each method that DG is compared with, against CFG alone or no guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intaglio.analysis.experiments import baselines
from intaglio.analysis.experiments.gallery import Gallery, Pictures
from intaglio.analysis.guidance.negatives import Weaker
from intaglio.analysis.quality import intervals, measures
from intaglio.analysis.quality.judge import Judge
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure, Section, Table
from intaglio.torch_reference.guidance import Method

SHOWN = 12
RESAMPLES = 200
# At most this many pictures are used to measure precision and recall.
COVERED = 2000


def comparison_section(
    gallery: Gallery, setting: Method, weaker: Weaker | None, images: int
) -> Section:
    """Draw `images` pictures of each main method on the same seeds, and compare them."""
    names = baselines.names_at(setting.cfg_scale)
    others = baselines.negatives(gallery, setting, weaker)
    pilot = baselines.run_pilot(gallery, setting, others)
    methods = baselines.methods_to_compare(gallery, setting, pilot, others)
    drawn = {
        name: gallery.draw(method, names.seeds(name, images), omega=method.guided)
        for name, method in methods.items()
    }
    values = {name: measured(pictures, gallery.judge) for name, pictures in drawn.items()}
    gaps = {
        name: against(drawn[names.base], pictures, gallery.judge)
        for name, pictures in drawn.items()
        if name != names.base
    }
    columns = list(values[names.plus("dg")])
    table = Table(
        ["method", "cfg_scale", "w", "images", *columns],
        [
            [name, methods[name].cfg_scale, methods[name].weight, len(drawn[name])]
            + [row.get(column, float("nan")) for column in columns]
            for name, row in values.items()
        ],
    )
    gap_columns = list(gaps[names.plus("dg")])
    gap_table = Table(
        [f"minus {names.base_in_words}", *gap_columns],
        [[name, *map(str, row.values())] for name, row in gaps.items()],
    )
    figures = [
        Figure(
            "arms.png",
            plots.gallery({name: pictures.images[:SHOWN] for name, pictures in drawn.items()}),
            "The same seeds and prompts with each guidance method.",
        ),
        Figure(
            "arms-intervals.png",
            plots.intervals({m: {n: row[m] for n, row in gaps.items()} for m in gap_columns}),
            f"Differences from {names.base_in_words} on the same seeds, with 95 % intervals.",
        ),
    ]
    numbers: dict[str, Any] = {
        "omega": pilot.omega,
        "norms": pilot.norms,
        "arms": {
            name: {"method": str(methods[name]), "images": len(drawn[name])} | row
            for name, row in values.items()
        },
        f"minus_{names.base}": gaps,
    }
    claims = [_effective(setting, pilot)]
    if gallery.judge is None:
        claims.append(
            "No judge was given, so only measures of detail were compared, and these reward noise."
        )
    else:
        claims += _claims(names, values, gaps)
    title = f"Detail Guidance against {names.base_in_words}"
    return Section(title, claims, [table, gap_table], figures, numbers)


def measured(pictures: Pictures, judge: Judge | None) -> dict[str, float]:
    """Return the means of the pictures' measures, and the distances of the whole set."""
    values: dict[str, float] = {}
    if judge is not None:
        features = pictures["features"]
        precision, recall = measures.precision_recall(judge.neighbours, features[:COVERED])
        values = {
            "frechet": measures.frechet(measures.moments(features), judge.moments),
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "accuracy": float(_right(pictures, judge).mean()),
        }
    values |= {name: float(pictures[name].mean()) for name in measures.DETAIL}
    values |= {name: float(pictures[name].mean()) for name in ("saturation", "clipped")}
    if "omega" in pictures.values:
        values["omega"] = float(pictures["omega"].mean())
    return values


def _right(pictures: Pictures, judge: Judge) -> NDArray[np.float64]:
    """Return 1 for each picture whose class is the prompt's, else 0 [N]."""
    return np.asarray(pictures["class"] == judge.labels[pictures["prompt"]], np.float64)


def against(base: Pictures, other: Pictures, judge: Judge | None) -> dict[str, intervals.Interval]:
    """Return the paired differences other - base over the seeds that both have."""
    n = min(len(base), len(other))
    gaps: dict[str, intervals.Interval] = {}
    if judge is not None:
        reference = judge.moments
        gaps["frechet"] = intervals.bootstrap_difference(
            lambda features: measures.frechet(measures.moments(features), reference),
            base["features"][:n],
            other["features"][:n],
            RESAMPLES,
            seed=0,
        )
        covered = [
            measures.precision_recall(judge.neighbours, pictures["features"][: min(n, COVERED)])
            for pictures in (base, other)
        ]
        for name, pair in zip(("precision", "recall"), zip(*covered, strict=True), strict=True):
            gaps[name] = intervals.paired_share_difference(*pair)
        right = [_right(pictures, judge)[:n] for pictures in (base, other)]
        gaps["accuracy"] = intervals.paired_share_difference(*right)
    for name in (*measures.DETAIL, "saturation", "clipped"):
        gaps[name] = intervals.paired_difference(base[name][:n], other[name][:n])
    return gaps


def verdict(gap: intervals.Interval, better: Callable[[float], bool]) -> str:
    """Say better, worse, or not distinguishable if the interval contains zero."""
    if gap.low <= 0 <= gap.high:
        return "not distinguishable from"
    return "better than" if better(gap.measured) else "worse than"


def _effective(setting: Method, pilot: baselines.Pilot) -> str:
    """Say what the setting's effective guidance is, and how the other methods were set up."""
    names = baselines.names_at(setting.cfg_scale)
    what = f"cfg_scale {setting.cfg_scale:g} with w {setting.weight:g}"
    if pilot.omega is not None:
        said = (
            f"Effective guidance of {what}: omega {pilot.omega:.3f}; {names.base_in_words} has"
            f" {setting.cfg_scale:g}."
        )
        table = " their omega is in the table and differs from DG's."
    else:
        why = "scales the result of CFG" if names.cfg else "runs without a null prompt"
        said = f"No effective guidance is known for {what}, because the model {why}."
        table = ""
    return (
        f"{said} The weights of the other negative branches make their terms as long as DG's on the"
        f" clean image, along runs of {names.base_in_words}{';' if table else '.'}{table} DG's"
        " setting may come from a search on this model; the other methods were not tuned."
    )


def _claims(
    names: baselines.Names,
    values: Mapping[str, Mapping[str, float]],
    gaps: Mapping[str, Mapping[str, intervals.Interval]],
) -> list[str]:
    """Say which methods a judge finds better or worse than the one without DG."""
    base = names.base_in_words
    dg_name, random_name = names.plus("dg"), names.plus("random")

    def compared(gap: intervals.Interval) -> str:
        return f"{verdict(gap, lambda value: value < 0)} {base}"

    claims = []
    for name in filter(gaps.__contains__, (dg_name, "cfg at omega", random_name)):
        gap = gaps[name]["frechet"]
        distance = values[name]["frechet"]
        claims.append(
            f"{name}: Fréchet distance {distance:.2f}; {base} on the same seeds has"
            f" {distance - gap.measured:.2f}; the difference is {gap}: {compared(gap)}."
        )
    claims.append(
        "Fewer images give a larger Fréchet distance, so compare only methods with the same number"
        " of images. The differences are over the seeds that both have."
    )
    dg = gaps[dg_name]["frechet"]
    draws = [of["frechet"] for name, of in gaps.items() if name.startswith(f"{random_name} as far")]
    claims.append(
        "Random channels at the w that moves them as far, one entry for each draw: "
        + "; ".join(f"{gap}, {compared(gap)}" for gap in draws)
        + "."
    )
    random = [gaps[random_name]["frechet"], *draws]
    if dg.high < 0 and any(gap.high < 0 for gap in random):
        claims.append(
            "Random channels can help too, so the gain is not due to these channels alone."
        )
    accuracy = gaps[dg_name]["accuracy"]
    claims.append(
        f"Class accuracy of {dg_name}: difference {accuracy},"
        f" {verdict(accuracy, lambda value: value > 0)} {base}."
    )
    negatives = ("blurred", "skip-layer", "no top key", "no random key", "autoguidance")
    others = {*map(names.plus, negatives), "dg"} - {dg_name}
    for name in filter(others.__contains__, gaps):
        gap = gaps[name]["frechet"]
        claims.append(f"{name}: difference {gap}, {compared(gap)}.")
    return claims
