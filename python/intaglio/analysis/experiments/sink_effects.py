"""Part 8 of the report: attention sinks, and what the key with the most attention does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from intaglio.analysis.channels.attention import hiding
from intaglio.analysis.channels.recorder import Statistics
from intaglio.analysis.channels.sinks import (
    attention_claims,
    attention_figures,
    attention_numbers,
)
from intaglio.analysis.experiments.effects import SEED, SHOWN, differences
from intaglio.analysis.experiments.gallery import Gallery
from intaglio.analysis.quality import intervals
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure, Section, Table
from intaglio.torch_reference.guidance import Method

HIDDEN = {"top key hidden": "top", "random key hidden": "random"}


def sinks_section(
    gallery: Gallery, statistics: Statistics, cfg_scale: float, images: int
) -> Section:
    """Report the attention, and compare pictures whose top or random keys are hidden.

    The key is hidden in every block and step, in all branches, as in arXiv 2605.09313.
    """
    model, method = gallery.model, Method(cfg_scale)
    seeds = range(SEED, SEED + images)
    base = gallery.draw(method, seeds)
    drawn = {}
    for name, which in HIDDEN.items():

        @contextmanager
        def scope(which: str = which) -> Iterator[None]:
            with hiding(model, which):
                yield

        drawn[name] = gallery.draw_changed(name, method, scope, seeds)
    found = {name: differences(base, pictures, gallery) for name, pictures in drawn.items()}
    columns = list(found["top key hidden"])
    table = Table(
        ["with a key hidden", *(c.replace("_", " ") for c in columns)],
        [[name, *map(str, values.values())] for name, values in found.items()],
    )
    rows = {"untouched": base.images[:SHOWN]}
    rows |= {name: pictures.images[:SHOWN] for name, pictures in drawn.items()}
    figure = Figure(
        "keys.png",
        plots.gallery(rows),
        "The same seeds untouched, and with one key hidden in every block and step.",
    )
    numbers = attention_numbers(statistics) | {"images": images, "differences": found}
    return Section(
        "Attention sinks",
        [*attention_claims(statistics), *_claims(found, images)],
        [table],
        [*attention_figures(statistics), figure],
        numbers,
    )


def _claims(found: dict[str, dict[str, intervals.Interval]], images: int) -> list[str]:
    claims = []
    for name, values in found.items():
        words = [f"large shapes correlate at {values['low_pass_similarity']}"]
        if "class_agreement" in values:
            words.append(f"the judge's class stays in {values['class_agreement']}")
        claims.append(f"{name.capitalize()} ({images} images): {', '.join(words)}.")
    measure = "feature_distance" if "feature_distance" in found["top key hidden"] else "color_drift"
    top, random = (values[measure] for values in found.values())
    times = top.measured / max(random.measured, 1e-12)
    apart = top.low > random.high or top.high < random.low
    claims.append(
        f"Hiding the top key changes the pictures {times:.1f} times as much as hiding a random one"
        f" ({measure.replace('_', ' ')}), "
        f"{'and' if apart else 'but'} the intervals {'do not ' if apart else ''}overlap."
        " In SD3, arXiv 2605.09313 reports about six times."
    )
    return claims
