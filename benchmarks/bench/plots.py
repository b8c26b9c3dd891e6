"""Plot the figures of docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.bench.runtimes import FORKED, OURS

mpl.use("agg")
Data = dict[str, Any]
_OURS, _THEIRS = "#1f5fa8", "#9a9a9a"


def plot(data: Data, folder: Path) -> list[str]:
    """Write every figure that `data` has numbers for; their names in order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, model in data["models"].items():
        if "compare" in model:
            names.append(_runtimes(name, model, folder))
            names.append(_scaling(name, model, folder))
        if model.get("curve"):
            names.append(_curve(name, model, folder))
    return names


def _save(figure: Any, folder: Path, name: str) -> str:
    figure.tight_layout()
    figure.savefig(folder / name, dpi=110)
    plt.close(figure)
    return name


def _runtimes(name: str, model: Data, folder: Path) -> str:
    rows = model["compare"]["runtimes"]
    order = sorted(rows, key=lambda r: -rows[r]["seconds_per_step"]["median"])
    figure, axes = plt.subplots(figsize=(7.5, 0.45 * len(order) + 1.1))
    for place, runtime in enumerate(order):
        ratio = rows[runtime]["ratio_to_forked"]
        middle = ratio["median"]
        error = [[middle - ratio["low"]], [ratio["high"] - middle]]
        color = _OURS if runtime in OURS else _THEIRS
        axes.barh(place, middle, xerr=error, color=color, height=0.65, capsize=3)
        axes.text(ratio["high"] + 0.02, place, f" {middle:.2f}", va="center")
    axes.set_yticks(range(len(order)), order)
    axes.margins(x=0.12)
    axes.set_xlabel("time of CFG+DG / time of layout forked: median and extremes of rounds")
    axes.set_title(f"{name}: {model['compare']['tokens']} image tokens")
    return _save(figure, folder, f"{name}-runtimes.png")


def _curve(name: str, model: Data, folder: Path) -> str:
    points = model["curve"]
    blocks = [point["block"] for point in points]
    figure, axes = plt.subplots(figsize=(7, 4))
    for key, label, color in (
        ("dg", "DG / no guidance", "#b5532a"),
        ("cfg+dg", "CFG+DG / CFG", _OURS),
    ):
        ratios = [point[key]["ratio"] for point in points]
        middle = [r["median"] for r in ratios]
        low = [r["median"] - r["low"] for r in ratios]
        high = [r["high"] - r["median"] for r in ratios]
        axes.errorbar(blocks, middle, [low, high], fmt="o", capsize=3, color=color, label=label)
        by_rows = [point[key]["predicted"] for point in points]
        axes.plot(blocks, by_rows, color=color, label="predicted from rows")
        by_flops = [point[key]["flops_ratio"] for point in points]
        axes.plot(blocks, by_flops, ":", color=color, label="predicted from FLOPs")
    axes.set_xlabel("m: the fork is after this block")
    axes.set_ylabel("ratio of times")
    axes.set_title(f"{name}: cost of the third branch")
    axes.legend(fontsize=8)
    return _save(figure, folder, f"{name}-fork.png")


def _scaling(name: str, model: Data, folder: Path) -> str:
    scaling = model["compare"]["scaling"]
    figure, all_axes = plt.subplots(1, len(scaling), figsize=(4 * len(scaling), 3.6))
    for axes, (axis, points) in zip(all_axes, scaling.items(), strict=True):
        values = [point["value"] for point in points]
        everywhere = [n for n in points[0]["seconds"] if all(n in p["seconds"] for p in points)]
        for runtime in everywhere:
            times = [point["seconds"][runtime]["median"] for point in points]
            color = _OURS if runtime == FORKED else _THEIRS
            axes.plot(values, times, "o-", color=color, label=runtime)
        rate = points[0]["seconds"][FORKED]["median"] / points[0]["flops"]
        expected = [rate * point["flops"] for point in points]
        axes.plot(values, expected, "k:", label="proportional to FLOPs")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(values, [str(v) for v in values])
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.set_xlabel("image tokens" if axis == "tokens" else axis)
    all_axes[0].set_ylabel("seconds per run")
    all_axes[0].legend(fontsize=8)
    figure.suptitle(name)
    return _save(figure, folder, f"{name}-scaling.png")
