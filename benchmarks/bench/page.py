"""docs/performance.md of docs/performance.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.bench.goals import Goal, goals
from benchmarks.bench.runtimes import FORKED, OURS

Data = dict[str, Any]
_HEAD = """\
# Performance

`{command}` measured this on {date} in {minutes:.1f} minutes and wrote this page,
[the numbers](performance.json) and the figures. A first run also exports the models, which are
kept (mid-sd3's part took 11 minutes of an idle machine). {machine}. {versions}.

Every round runs each runtime once, one after the other, with {threads} threads, the same noise,
prompt embeddings and diffusers' schedule, in float32; all end in the same latents (relative L2 is
in the tables; 1e-3 is the limit). Ratios are of times in one round, since a machine drifts between
rounds: the median, and the extremes in brackets. A time is that of the whole call from noise to
final latents, without text encoders and VAE. The shipped model, fashion-sd3, is trained; others
have random weights. Parameters: {parameters}. {remark}
"""
_PEERS = """\
## What is compared

Peers run CFG+DG as three rows of one batch through the plain transformer: a hook zeroes the massive
channel on the rows of D_m. diffusers runs its own modules, eager or by `torch.compile`; ONNX
Runtime (its Python package as it comes) and OpenVINO run the graph that torch's exporter makes of
that, opset {opset}. *Branch by branch* is three calls of one row.

Not in the tables: openvino-genai and stable-diffusion.cpp, which sample by themselves and have no
third branch. [What they do on these models](performance-peers.md) with CFG alone.
"""


_WHY = """\
Why those that are not met are not, by what has been profiled on two cores
([0012](decisions/0012-onnxruntime-graph.md) has the tables):

- *Beside eager.* 83 % of a forward are matrix products and 7 % attention, all in ONNX Runtime's
  kernels; every other operator has 2 % or less. The fork saves what FLOPs say, 1.25 times on SD3,
  1.23 on FLUX, so 1.5 times needs kernels 1.2 times as quick as torch's. On SD3 they are, on FLUX
  they were 1.09 times as quick, prepacked 1.15, on the day that this was written.
- *Prepacked* is this runtime with `--prepack`: weights are packed for the kernels when they are
  loaded, not in each product, which is ONNX Runtime's default and so in its rows too. The start is
  later then, and processes do not share those weights, so it is off unless asked for, and on in
  the server.
- *Beside the fastest peer.* On FLUX that is ONNX Runtime itself, with its weights packed.
- *Start.* ONNX Runtime's two sessions take 0.12 to 0.15 s to load, of which 0.06 s are its graph
  optimizations, however small the file is: FLUX's is read in less than 0.1 s. The rest is the run
  of the conditioning graph, which reads a third of the weights. The second core hashes the weights.
- *Memory.* Beside the tensors that a graph's order needs, ONNX Runtime's arena holds its blocks of
  doubling size, and buffers that are no tensors of the graph: queries, keys and values by head, and
  packed weights. 27 MB are the program and the loaded graph. Without the arena it is more.
"""


def page(data: Data, figures: Iterable[str], opset: int) -> str:
    """The whole page."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    parameters = ", ".join(
        f"{name} {model['counts']['parameter_bytes'] / 4e6:.0f} M"
        for name, model in data["models"].items()
    )
    head = _HEAD.format(
        command=data["command"],
        date=data["date"],
        minutes=data["minutes"],
        machine=data["machine"],
        versions=versions,
        threads=data["threads"],
        parameters=parameters,
        remark=data["remark"],
    )
    parts = [head, _goals(goals(data)), _WHY, _PEERS.format(opset=opset)]
    for name, model in data["models"].items():
        shown = [figure for figure in figures if figure.startswith(name)]
        parts.append("\n".join(_model(name, model, shown)))
    return "\n".join(parts)


def table(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    """Markdown; all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([str(c) for c in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _goals(found: list[Goal]) -> str:
    words = {True: "met", False: "**not met**", None: "no goal here"}
    rows = ((g.sentence, g.model, g.measured, words[g.met]) for g in found)
    return "## Goals\n\n" + table(["goal", "model", "measured", ""], rows)


def _ratio(value: Data, digits: int = 2) -> str:
    median, low, high = (f"{value[key]:.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def _model(name: str, model: Data, figures: list[str]) -> Iterator[str]:
    yield f"## {name}\n"
    if "compare" in model:
        yield from _compare(model["compare"])
    yield _counts(model["counts"])
    if model.get("curve"):
        yield _curve(model["curve"])
    if "start" in model:
        start = model["start"]
        yield (
            f"From exec to the first call of the network, files cached, with {start['given']}:"
            f" {_ratio(start['seconds'])} s, prepacked {_ratio(start['prepacked_seconds'])} s;"
            " reading the weights' file:"
            f" {_ratio(start['reading_weights'])} s.\n"
        )
    if "memory" in model:
        rows = (
            [r["tokens"], *(f"{r[k] / 1e6:.0f}" for k in _MEMORY)] for r in model["memory"]
        )  # fmt: skip
        yield "Memory of a process that runs every mode, MB:\n"
        yield table(["image tokens", "peak", "weights", "largest activations"], rows)
    if "inexact" in model:
        yield _inexact(model["inexact"])
    yield from (f"![{figure}](performance/{figure})\n" for figure in figures)


_MEMORY = ("peak_bytes", "weights_bytes", "activation_bytes")


def _compare(compare: Data) -> Iterator[str]:
    yield (
        f"CFG+DG, {compare['tokens']} image tokens, one image, {compare['steps']} steps, fork after"
        f" block {compare['block']}:\n"
    )
    rows = (
        [
            f"**{name}**" if name in OURS else name,
            f"{row['seconds_per_step']['median']:.4g}",
            _ratio(row["ratio_to_forked"]),
            f"{row['relative_l2']:.0e}",
        ]
        for name, row in compare["runtimes"].items()
    )
    yield table(["runtime", "seconds a step", "beside forked", "relative L2"], rows)
    for name, why in compare["missing"].items():
        yield f"Not measured: {name}. `{why}`\n"
    loop = compare["loop"]
    yield (
        f"The loop of layout forked: {loop['outside_network']['median']:.2%} outside of the"
        f" network, {loop['allocations_per_step']:g} allocations, {loop['copies_per_step']:g}"
        f" copies and {loop['copied_bytes_per_step'] / 1e3:.1f} kB copied in a step.\n"
    )
    peer = compare["fastest_peer"]
    cases = [
        [f"{p['value']} {axis}", f"{p['flops'] / 1e9:.1f}", *_pair(p["seconds"], peer)]
        for axis, points in compare["scaling"].items()
        for p in points
    ]
    yield table(["a run of", "GFLOP, forked", "forked, s", f"{peer}, s", "ratio"], cases)


def _pair(seconds: Data, peer: str) -> list[str]:
    """Ours, the peer's and their ratio, where the peer was measured."""
    ours = seconds[FORKED]["median"]
    if peer not in seconds:
        return [f"{ours:.3g}", "", ""]
    theirs = seconds[peer]["median"]
    return [f"{ours:.3g}", f"{theirs:.3g}", f"{theirs / ours:.2f}"]


def _counts(counts: Data) -> str:
    rows = [
        [
            f"{layout}, {mode}",
            *(f"{count[key] / 1e9:.2f}" for key in ("flops", "moving_flops")),
            *(f"{count[key] / 1e6:.1f}" for key in ("weights_bytes", "moving_weights_bytes")),
            f"{count['activation_bytes'] / 1e6:.1f}",
        ]
        for layout, modes in counts["layouts"].items()
        for mode, count in modes.items()
    ]
    head = ["a step of", "GFLOP", "needed", "weights, MB", "needed", "activations, MB"]
    text = (
        "Counted from the graphs; *needed* is what depends on the latent, so that it cannot be"
        f" computed before the loop. All parameters: {counts['parameter_bytes'] / 1e6:.1f} MB.\n\n"
    )
    return text + table(head, rows)


def _curve(points: list[Data]) -> str:
    rows = [
        [point["block"]]
        + [
            cell
            for key in ("cfg+dg", "dg")
            for cell in (
                _ratio(point[key]["ratio"], 3),
                f"{point[key]['predicted']:.3f}",
                f"{point[key]['flops_ratio']:.3f}",
            )
        ]
        for point in points
    ]
    head = ["m", "(CFG+DG)/CFG", "by rows", "by FLOPs", "DG/conditional", "by rows", "by FLOPs"]
    return "What the third branch costs by the place of the fork:\n\n" + table(head, rows)


def _inexact(rows: list[Data]) -> str:
    cells = (
        [
            "float32, exact" if row["name"] == FORKED else row["name"],
            row["steps"],
            _ratio(row["ratio_to_forked"]),
            f"{row['weights_bytes'] / 1e6:.1f}" if "weights_bytes" in row else "",
            f"{row['relative_l2']:.1e}" if row["relative_l2"] else "0",
        ]
        for row in rows
    )
    head = ["CFG+DG", "steps", "beside exact", "weights, MB", "relative L2"]
    text = (
        "Not exact, and off unless asked for ([quantised weights](performance-quantised.md),"
        " [reuse](performance-reuse.md)); the error is of the final latents:\n\n"
    )
    return text + table(head, cells)
