"""Plots as PNG: curves, heat maps, values with intervals, and rows of pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from intaglio.analysis.quality.intervals import Interval

matplotlib.use("Agg")
STYLE = {
    "figure.dpi": 110,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "figure.constrained_layout.use": True,
}


@contextmanager
def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Any, io.BytesIO]]:
    """Yield the axes of a new figure, and the buffer that holds its PNG afterwards."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False)
        try:
            yield axes, buffer
            figure.savefig(buffer, format="png")
        finally:
            pyplot.close(figure)


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    level: tuple[float, str] | None = None,
    falling: bool = False,
) -> bytes:
    """Draw lines by name over `x`, with `bands` where given and a horizontal line at `level`.

    `falling` lets x decrease to the right, as sigma does over a run.
    """
    with _figure(7, 3.4) as (axes, buffer):
        axis = axes[0, 0]
        for name, values in lines.items():
            (line,) = axis.plot(x, values, marker="o", markersize=3, label=name)
            if bands and name in bands:
                axis.fill_between(x, *bands[name], color=line.get_color(), alpha=0.15, linewidth=0)
        if level:
            axis.axhline(level[0], color="grey", linestyle="--", linewidth=1, label=level[1])
        axis.set(xlabel=x_label, ylabel=y_label)
        if falling:
            axis.invert_xaxis()
        axis.legend(frameon=False, fontsize=8, ncols=2 if len(lines) > 5 else 1)
    return buffer.getvalue()


def heatmap(
    values: NDArray[Any], x: Sequence[object], y: Sequence[object], x_label: str, y_label: str
) -> bytes:
    """Draw values [rows, columns] as colours, with numbers in the cells if there is room."""
    rows, columns = values.shape
    with _figure(min(9, 2 + 0.55 * columns), min(7, 1.2 + 0.4 * rows)) as (axes, buffer):
        axis = axes[0, 0]
        image = axis.imshow(values, aspect="auto", cmap="viridis")
        axis.figure.colorbar(image, ax=axis)
        axis.set_xticks(range(columns), [str(v) for v in x])
        axis.set_yticks(range(rows), [str(v) for v in y])
        axis.set(xlabel=x_label, ylabel=y_label)
        if rows * columns <= 150:
            middle = (np.nanmin(values) + np.nanmax(values)) / 2
            for (i, j), value in np.ndenumerate(values):
                color = "white" if value < middle else "black"
                axis.text(j, i, f"{value:.2g}", ha="center", va="center", color=color, fontsize=7)
    return buffer.getvalue()


def intervals(values: Mapping[str, Mapping[str, Interval]], zero: bool = True) -> bytes:
    """Draw one panel for each measure: a point with its interval for each name, and a zero line."""
    names = list(next(iter(values.values())))
    with _figure(min(11, 1.4 + 2.4 * len(values)), 1.4 + 0.3 * len(names), 1, len(values)) as (
        axes,
        buffer,
    ):
        for axis, (measure, found) in zip(axes[0], values.items(), strict=True):
            for i, name in enumerate(names):
                if (one := found.get(name)) is None:
                    continue
                axis.plot([one.low, one.high], [i, i], color="tab:blue")
                axis.plot(one.measured, i, "o", color="tab:blue", markersize=4)
            if zero:
                axis.axvline(0, color="grey", linewidth=1, linestyle="--")
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.set_yticks(range(len(names)), names if axis is axes[0, 0] else [])
            axis.set_title(measure.replace("_", "\n"), fontsize=8)
            axis.tick_params(axis="x", labelsize=7)
            axis.locator_params(axis="x", nbins=3)
            axis.ticklabel_format(axis="x", scilimits=(-2, 3))  # long numbers would overlap
            axis.xaxis.get_offset_text().set_fontsize(7)
    return buffer.getvalue()


def points(
    found: Sequence[tuple[float, float, str]],
    x_label: str,
    y_label: str,
    line: Sequence[tuple[float, float]] = (),
    level: tuple[float, str] | None = None,
) -> bytes:
    """Draw named points, and a line through the best of them."""
    with _figure(7, 4) as (axes, buffer):
        axis = axes[0, 0]
        axis.scatter([p[0] for p in found], [p[1] for p in found], s=18)
        for x, y, name in found:
            offset = (3, -8) if (x, y) in line else (3, 3)  # below the line, clear of other names
            axis.annotate(name, (x, y), fontsize=6, xytext=offset, textcoords="offset points")
        if line:
            axis.plot(*zip(*line, strict=True), color="tab:orange", label="frontier")
        if level:
            axis.axhline(level[0], color="grey", linestyle="--", linewidth=1, label=level[1])
        axis.set(xlabel=x_label, ylabel=y_label)
        axis.legend(frameon=False, fontsize=8)
    return buffer.getvalue()


def gallery(
    rows: Mapping[str, NDArray[Any]], heads: Sequence[str] = (), scale: float = 0.75
) -> bytes:
    """Draw a row of pictures [n, H, W, 3] or maps [n, H, W] for each name."""
    columns = max(len(images) for images in rows.values())
    height, width = next(iter(rows.values())).shape[1:3]
    names = 0.4 + 0.075 * max(map(len, rows))  # width of the longest name in inches
    size = names + scale * columns, 0.4 + scale * len(rows) * height / width
    # All pictures share one pair of axes, since a pair for each takes seconds to lay out.
    with _figure(*size) as (axes, buffer):
        axis = axes[0, 0]
        for i, images in enumerate(rows.values()):
            for j, image in enumerate(images):
                shown = image
                if image.ndim == 3:
                    shown = np.clip(image, 0, 255 if image.dtype == np.uint8 else 1)
                axis.imshow(shown, extent=(j + 0.03, j + 0.97, i + 0.97, i + 0.03))
        axis.set(xlim=(0, columns), ylim=(len(rows), 0), aspect=height / width)
        axis.set_anchor("E")  # the names take the space on the left
        axis.set_yticks(np.arange(len(rows)) + 0.5, list(rows), fontsize=8)
        axis.set_xticks(np.arange(len(heads)) + 0.5, list(heads), fontsize=7)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return buffer.getvalue()


def panels(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
) -> bytes:
    """Draw a small plot for each line, with its band."""
    with _figure(1.9 * len(lines), 2.2, 1, len(lines)) as (axes, buffer):
        for axis, (name, values) in zip(axes[0], lines.items(), strict=True):
            axis.plot(x, values, marker="o", markersize=3)
            axis.fill_between(x, *bands[name], alpha=0.2, linewidth=0)
            axis.set_title(name, fontsize=8)
            axis.set_xlabel(x_label)
            axis.tick_params(labelsize=7)
    return buffer.getvalue()


def scatters(
    x: Mapping[str, Sequence[float]], y: Mapping[str, Sequence[float]], names: Sequence[str]
) -> bytes:
    """Draw a panel of named points for each pair of `y` (rows) and `x` (columns, logarithmic)."""
    with _figure(3.8 * len(x), 2.1 * len(y), len(y), len(x)) as (axes, buffer):
        for row, (y_label, heights) in zip(axes, y.items(), strict=True):
            for axis, (x_label, places) in zip(row, x.items(), strict=True):
                for place, height, name in zip(places, heights, names, strict=True):
                    axis.plot(place, height, "o", markersize=4, label=name)
                axis.set_xscale("log")
                ticks = sorted(set(places))
                axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                axis.minorticks_off()
                axis.margins(0.15)
                axis.set(xlabel=x_label, ylabel=y_label)
        axes[0, -1].legend(frameon=False, fontsize=7)
    return buffer.getvalue()
