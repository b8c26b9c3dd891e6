"""The tables on the screen: what would be built, and what the engines are."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from intaglio_export.engines.builder import BuildPlan, BuildTask, estimates


def plan_table(plan: BuildPlan) -> RenderableType:
    """Return what a build would do, with estimates of memory."""
    table = _table("graph", "engine", ">weights", ">activations")
    for task in plan.tasks:
        table.add_row(
            task.component.path,
            "is there" if task.entry else "to build",
            _size(task.component.weights_bytes),
            _sizes(estimates(plan, task)),
        )
    return Group(_head(plan), table, _NOTE)


_NOTE = (
    "Estimates: the weights of the graph, and the largest memory of activations that exist at the"
    " same time for the largest images of a profile."
)


def report_table(plan: BuildPlan) -> RenderableType:
    """Return what each engine is."""
    table = _table("graph", ">plan", ">weights", ">activations", ">layers", ">seconds")
    for task in plan.tasks:
        entry = task.entry or {}
        table.add_row(
            task.component.path,
            _size(entry["plan_bytes"]),
            _size(entry["weights_bytes"]),
            _sizes(entry["activation_bytes"]),
            str(entry["layers"]),
            f"{entry['seconds']:.1f}" if task.component.path in plan.built else "was there",
        )
    return Group(_head(plan), table, _findings(plan.tasks))


_WIDEST = 10_000  # characters: no path on Linux is longer than 4096


def as_text(table: RenderableType) -> str:
    """Return text for a file or a pipe, without wrapping, cutting or trailing blanks."""
    lines = io.StringIO()
    plain: dict[str, Any] = {"color_system": None, "markup": False, "emoji": False}
    Console(file=lines, width=_WIDEST, **plain).print(table)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines())


def _head(plan: BuildPlan) -> Table:
    table = _table()
    settings = plan.settings
    table.add_row("engines", str(plan.folder))
    table.add_row("for", f"{', '.join(settings.targets)}, {settings.precision}")
    table.add_row("built by", plan.package.title)
    if settings.flags:
        table.add_row("flags", ", ".join(settings.flags))
    for profile in settings.profiles:
        table.add_row("profile", str(profile))
    return table


def _findings(tasks: list[BuildTask]) -> Table:
    """Return the types of the image stream, whether the op was fused, and remarks."""
    table = _table()
    for task in tasks:
        entry = task.entry or {}
        if "residual" in entry:
            types = _types(entry["residual"])
            table.add_row(task.component.kind, f"image stream after each block: {types}")
        if op := entry.get("ma_suppress"):
            place = "fused with its neighbours" if op["fused"] else "in layers of its own"
            table.add_row(task.component.kind, f"MASuppress: {place}")
        for remark in entry.get("remarks", ()):
            table.add_row(task.component.kind, f"remark: {remark}")
    return table


def _types(residual: list[dict[str, Any]]) -> str:
    """Describe the types of the blocks, as in `0-6 float32, 7 fused`."""
    runs: list[tuple[str, list[int]]] = []
    for block in residual:
        if runs and runs[-1][0] == block["dtype"]:
            runs[-1][1].append(block["block"])
        else:
            runs.append((block["dtype"], [block["block"]]))
    return ", ".join(
        f"{blocks[0]}-{blocks[-1]} {dtype}" if len(blocks) > 1 else f"{blocks[0]} {dtype}"
        for dtype, blocks in runs
    )


def _table(*columns: str) -> Table:
    """Return a table without borders. A column whose name starts with > holds numbers."""
    table = Table(show_header=bool(columns), box=None, pad_edge=False, header_style="")
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column[0] == ">" else "left")
    if not columns:
        table.add_column()
        table.add_column(overflow="fold")
    return table


def _sizes(counts: list[int]) -> str:
    """Return one size for each profile."""
    return " / ".join(f"{count / 1e6:.1f}" for count in counts) + " MB"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
