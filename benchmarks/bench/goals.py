"""The goals of speed, each decided from the numbers of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.bench.runtimes import EAGER, FORKED, PREPACKED

Data = dict[str, Any]
MID = ("mid-sd3", "mid-flux")


@dataclass(frozen=True)
class Goal:
    """A sentence, the model it was seen on, what was measured, and whether that is enough.

    `met` is None where the run did not measure it.
    """

    sentence: str
    model: str
    measured: str
    met: bool | None


def goals(data: Data) -> list[Goal]:
    """Those of the models that the run has."""
    found: list[Goal] = []
    for name, model in data["models"].items():
        found += _curve(name, model)
        found += _speed(name, model)
        found += _loop(name, model)
        found += _resident(name, model)
        found += _process(name, model)
        found += _linear(name, model)
    return found


def _curve(name: str, model: Data) -> Iterator[Goal]:
    for key, sentence in (
        (
            "cfg+dg",
            "CFG+DG takes at most 1.03 x (1 + (L-1-m)/(2L)) of the time of CFG, at every m",
        ),
        (
            "dg",
            "DG takes at most 1.03 x (1 + (L-1-m)/L) of the time without guidance, at every m",
        ),
    ):
        if points := model.get("curve"):
            worst = max(points, key=lambda p: p[key]["ratio"]["median"] / p[key]["predicted"])
            excess = worst[key]["ratio"]["median"] / worst[key]["predicted"]
            yield Goal(
                sentence, name, f"{excess:.3f} x, the largest, at m = {worst['block']}",
                excess <= 1.03,
            )  # fmt: skip


def _speed(name: str, model: Data) -> Iterator[Goal]:
    if "compare" not in model or name not in MID:
        return
    rows, fastest = model["compare"]["runtimes"], model["compare"]["fastest_peer"]
    for ours, what in ((FORKED, "CFG+DG"), (PREPACKED, "Prepacked CFG+DG")):
        for peer, factor in ((EAGER, 1.5), (fastest, 1.12)):
            title = "diffusers' eager loop" if peer == EAGER else "the fastest other runtime"
            rounds = (rows[each]["seconds_per_step"]["rounds"] for each in (peer, ours))
            times = median(theirs / own for theirs, own in zip(*rounds, strict=True))
            yield Goal(
                f"{what} at m = L/2 is at least {factor} times as fast as {title}", name,
                f"{times:.3f} times as fast" + ("" if peer == EAGER else f" ({peer})"),
                times >= factor,
            )  # fmt: skip


def _loop(name: str, model: Data) -> Iterator[Goal]:
    if "compare" not in model:
        return
    loop = model["compare"]["loop"]
    share = loop["outside_network"]["median"]
    yield Goal(
        "The loop spends less than 1 % of its time outside the network",
        name,
        f"{share:.2%}",
        share < 0.01,
    )
    allocated = loop["allocations_per_step"]
    yield Goal(
        "The loop allocates no memory", name, f"{allocated:g} allocations per step", allocated == 0
    )  # fmt: skip


def _resident(name: str, model: Data) -> Iterator[Goal]:
    counted = model["counts"]
    resident = counted["layouts"]["forked"]["cfg+dg"]["weights_bytes"]
    share = resident / counted["parameter_bytes"]
    yield Goal(
        "The graph of the loop has at most 70 % of SD3's parameters", name, f"{share:.1%}",
        share <= 0.7 if "sd3" in name else None,
    )  # fmt: skip


def _process(name: str, model: Data) -> Iterator[Goal]:
    if "start" in model:
        start = model["start"]["seconds"]["median"]
        read = model["start"]["reading_weights"]["median"]
        if name in MID:
            yield Goal(
                "The start takes less than 1.5 times as long as reading the weights", name,
                f"{start:.2f} s, {start / read:.1f} times", start < 1.5 * read,
            )  # fmt: skip
        else:
            yield Goal("The start takes less than 0.3 s", name, f"{start:.2f} s", start < 0.3)
    if "memory" in model:
        # Of the largest image: the weights and the program itself are least of it.
        row = model["memory"][-1]
        above = (row["peak_bytes"] - row["weights_bytes"]) / row["activation_bytes"]
        yield Goal(
            "Peak memory is at most the weights and 1.2 times the largest activations", name,
            f"weights and {above:.1f} times at {row['tokens']} tokens", above <= 1.2,
        )  # fmt: skip


def _linear(name: str, model: Data) -> Iterator[Goal]:
    """Time over FLOPs from the first to the last point: constant where time follows them."""
    for axis, points in model.get("compare", {}).get("scaling", {}).items():
        if len(points) < 2:
            continue
        rates = [p["seconds"][FORKED]["median"] / p["flops"] for p in (points[0], points[-1])]
        change = rates[1] / rates[0]
        span = f"{points[0]['value']} to {points[-1]['value']} {axis}"
        yield Goal(
            f"The time per FLOP grows by at most 10 % with more {axis}", name,
            f"{change:.2f} times the time per FLOP from {span}", change <= 1.1,
        )  # fmt: skip
