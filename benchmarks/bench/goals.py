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
        ("cfg+dg", "(CFG+DG)/CFG at most 1.03 times 1 + (L-1-m)/(2L), at every m measured"),
        ("dg", "DG alone beside conditional only at most 1.03 times 1 + (L-1-m)/L, likewise"),
    ):
        if points := model.get("curve"):
            worst = max(points, key=lambda p: p[key]["ratio"]["median"] / p[key]["predicted"])
            excess = worst[key]["ratio"]["median"] / worst[key]["predicted"]
            yield Goal(
                sentence, name, f"at worst {excess:.3f} times, at m = {worst['block']}",
                excess <= 1.03,
            )  # fmt: skip


def _speed(name: str, model: Data) -> Iterator[Goal]:
    if "compare" not in model or name not in MID:
        return
    rows, fastest = model["compare"]["runtimes"], model["compare"]["fastest_peer"]
    for ours, what in ((FORKED, "CFG+DG"), (PREPACKED, "Prepacked CFG+DG")):
        for peer, factor in ((EAGER, 1.5), (fastest, 1.12)):
            title = "diffusers' eager loop" if peer == EAGER else "the fastest peer"
            rounds = (rows[each]["seconds_per_step"]["rounds"] for each in (peer, ours))
            times = median(theirs / own for theirs, own in zip(*rounds, strict=True))
            yield Goal(
                f"{what} at m = L/2 at least {factor} times faster than {title}", name,
                f"{times:.3f} times" + ("" if peer == EAGER else f" ({peer})"), times >= factor,
            )  # fmt: skip


def _loop(name: str, model: Data) -> Iterator[Goal]:
    if "compare" not in model:
        return
    loop = model["compare"]["loop"]
    share = loop["outside_network"]["median"]
    yield Goal("Less than 1 % of the loop outside the network", name, f"{share:.2%}", share < 0.01)
    allocated = loop["allocations_per_step"]
    yield Goal(
        "No memory asked of the stream in the loop", name, f"{allocated:g} a step", allocated == 0
    )  # fmt: skip


def _resident(name: str, model: Data) -> Iterator[Goal]:
    counted = model["counts"]
    resident = counted["layouts"]["forked"]["cfg+dg"]["weights_bytes"]
    share = resident / counted["parameter_bytes"]
    yield Goal(
        "At most 70 % of SD3's parameters in the graph that the loop runs", name, f"{share:.1%}",
        share <= 0.7 if "sd3" in name else None,
    )  # fmt: skip


def _process(name: str, model: Data) -> Iterator[Goal]:
    if "start" in model:
        start = model["start"]["seconds"]["median"]
        read = model["start"]["reading_weights"]["median"]
        if name in MID:
            yield Goal(
                "Start in under 1.5 times the time of reading the weights", name,
                f"{start:.2f} s, {start / read:.1f} times", start < 1.5 * read,
            )  # fmt: skip
        else:
            yield Goal("Start in under 0.3 s", name, f"{start:.2f} s", start < 0.3)
    if "memory" in model:
        # Of the largest image: the weights and the program itself are least of it.
        row = model["memory"][-1]
        above = (row["peak_bytes"] - row["weights_bytes"]) / row["activation_bytes"]
        yield Goal(
            "Peak memory at most the weights and 1.2 times the largest activations", name,
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
            f"At most 1.1 times the seconds a FLOP at more {axis}", name,
            f"{change:.2f} times the seconds a FLOP from {span}", change <= 1.1,
        )  # fmt: skip
