"""The section "Speed" of docs/performance.md, made from docs/performance.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.bench.goals import Goal, goals
from benchmarks.bench.runtimes import FORKED, OURS

Data = dict[str, Any]
_HEAD = """\
## Speed

`{command}` measured these figures on {date} in {minutes:.1f} minutes and wrote this section, [its
data](performance.json) and the figures. The first run also exports the models and keeps them; for
mid-sd3 this takes 11 minutes on an idle machine.

{machine}. {versions}. {remark}

- Every round runs each runtime once, one after the other, with {threads} threads, in float32, with
  the same noise, prompt embeddings and schedule of diffusers.
- All runtimes end in the same latents. The tables give the relative L2 difference from diffusers;
  a difference above 1e-3 ends the measurement.
- A time is that of the whole call, from noise to final latents, without text encoders and VAE.
- A ratio divides two times of the same round, because the speed of a machine drifts between
  rounds. The tables give the median and, in brackets, the extremes.
- fashion-sd3 is the shipped, trained model. The others have random weights. Parameters:
  {parameters}.
"""
_PEERS = """\
### What is compared

The other runtimes run CFG+DG as three rows of one batch through the plain transformer, in which a
hook zeroes the massive channel on the row of D_m. diffusers runs its own modules, eagerly or with
`torch.compile`. ONNX Runtime (its Python package with default settings) and OpenVINO run the graph
that torch's exporter makes of this transformer, opset {opset}. *Branch by branch* means three
calls of one row each.
"""
_WHY = """\
Why some goals are not met, as far as it has been profiled on two cores:

- **Compared with diffusers' eager loop.** Matrix products take 83 % of a forward and attention
  7 %, all of it in ONNX Runtime's kernels; no other operator takes more than 2 %. The fork saves
  what the FLOPs predict, a factor of 1.25 on SD3 and 1.23 on FLUX. A factor of 1.5 therefore needs
  kernels that are 1.2 times as fast as torch's. On SD3 they are. On FLUX they were 1.09 times as
  fast, and 1.15 times when prepacked, on the day this was profiled.
- **Prepacked** is Intaglio with `--prepack`: the weights are packed for the kernels when they are
  loaded, instead of in every product. This is ONNX Runtime's default, so its rows include it. It
  makes the start slower, and processes do not share packed weights. It is off by default, except
  in the server.
- **Compared with the fastest other runtime.** On FLUX this is ONNX Runtime itself, with packed
  weights.
- **Start.** ONNX Runtime takes 0.12 to 0.15 s to load its two sessions, of which its graph
  optimizations take 0.06 s, whatever the size of the weights; FLUX's are read in less than 0.1 s.
  The conditioning graph takes the rest: it reads a third of the weights. The second core hashes
  the weights.
- **Memory.** The largest set of tensors that mid-sd3 needs at once takes 87 MB at 1,024 tokens. For
  them ONNX Runtime's arena takes 202 MB (2.3 times), since it holds blocks of doubling size, and
  buffers for queries, keys and values by head. It takes 250 MB with memory patterns, 325 MB with
  blocks of the size that is asked for, and without an arena the peak is 533 MB. The rest of the
  peak is the conditioning graph's arena, and 27 MB of program and loaded graphs.
"""


def page(data: Data, figures: Iterable[str], opset: int) -> str:
    """Return the section as Markdown."""
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
    """Return a Markdown table with all columns but the first aligned right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([str(c) for c in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _goals(found: list[Goal]) -> str:
    words = {True: "met", False: "**not met**", None: "not a goal here"}
    rows = ((g.sentence, g.model, g.measured, words[g.met]) for g in found)
    return "### Goals\n\n" + table(["goal", "model", "measured", ""], rows)


def _ratio(value: Data, digits: int = 2) -> str:
    median, low, high = (f"{value[key]:.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def _model(name: str, model: Data, figures: list[str]) -> Iterator[str]:
    yield f"### {name}\n"
    if "compare" in model:
        yield from _compare(model["compare"])
    yield _counts(model["counts"])
    if model.get("curve"):
        yield _curve(model["curve"])
    if "start" in model:
        start = model["start"]
        yield (
            f"Start: from exec to the first call of the network with {start['given']} and cached"
            f" files takes {_ratio(start['seconds'])} s, and"
            f" {_ratio(start['prepacked_seconds'])} s when the weights are prepacked. Reading"
            " the file of weights takes"
            f" {_ratio(start['reading_weights'])} s.\n"
        )
    if "memory" in model:
        rows = (
            [r["tokens"], *(f"{r[k] / 1e6:.0f}" for k in _MEMORY)] for r in model["memory"]
        )  # fmt: skip
        yield "Memory of a process that runs every mode, in MB:\n"
        yield table(["image tokens", "peak", "weights", "largest activations"], rows)
    if "openvino" in model:
        yield _openvino(model["openvino"])
    if "inexact" in model:
        yield _inexact(model["inexact"])
    if "encoders" in model:
        yield _encoders(model["encoders"])
    yield from (f"![{figure}](performance/{figure})\n" for figure in figures)


_MEMORY = ("peak_bytes", "weights_bytes", "activation_bytes")


def _compare(compare: Data) -> Iterator[str]:
    yield (
        f"CFG+DG with {compare['tokens']} image tokens, one image, {compare['steps']} steps, forked"
        f" after block {compare['block']}:\n"
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
    yield table(["runtime", "seconds per step", "time / forked", "relative L2"], rows)
    for name, why in compare["missing"].items():
        yield f"Not measured: {name}. `{why}`\n"
    loop = compare["loop"]
    yield (
        f"The loop of layout forked spends {loop['outside_network']['median']:.2%} of its time"
        f" outside the network. A step makes {loop['allocations_per_step']:g} allocations and"
        f" {loop['copies_per_step']:g} copies, which move"
        f" {loop['copied_bytes_per_step'] / 1e3:.1f} kB in all.\n"
    )
    peer = compare["fastest_peer"]
    cases = [
        [f"{p['value']} {axis}", f"{p['flops'] / 1e9:.1f}", *_pair(p["seconds"], peer)]
        for axis, points in compare["scaling"].items()
        for p in points
    ]
    yield table(["run of", "GFLOP, forked", "forked, s", f"{peer}, s", "ratio"], cases)


def _pair(seconds: Data, peer: str) -> list[str]:
    """Return our time, and the peer's and their ratio where the peer was measured."""
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
    head = ["step of", "GFLOP", "needed", "weights, MB", "needed", "activations, MB"]
    text = (
        "Counted from the graphs. *Needed* counts only what depends on the latent and therefore"
        " cannot be computed before the loop. All parameters take"
        f" {counts['parameter_bytes'] / 1e6:.1f} MB.\n\n"
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
    return "Cost of the third branch when the fork is after block m:\n\n" + table(head, rows)


def _openvino(rows: list[Data]) -> str:
    cells = (
        [
            f"**{row['name']}**" if row["name"].startswith(FORKED.split()[0]) else row["name"],
            f"{row['seconds_per_step']['median']:.4g}",
            _ratio(row["ratio_to_forked"]),
            f"{row['relative_l2']:.0e}" if row["relative_l2"] else "0",
        ]
        for row in rows
    )
    head = ["CFG+DG", "seconds per step", "time / forked", "relative L2"]
    text = (
        "Intaglio with `--device openvino`, beside OpenVINO's own runtime on the plain graph, by"
        " the type in which both compute. The error is that of the final latents, relative to"
        " `--device cpu`:\n\n"
    )
    return text + table(head, cells)


def _encoders(rows: list[Data]) -> str:
    cells = ([name, *rest] for name, _, *rest in map(_inexact_row, rows))
    head = ["text encoders", "time / float32", "weights, MB", "relative L2"]
    text = "Encoding a prompt and an empty one; the error is that of the prompt's embeddings:\n\n"
    return text + table(head, cells)


def _inexact_row(row: Data) -> list[Any]:
    return [
        "float32, exact" if row["name"] == FORKED else row["name"],
        row.get("steps", ""),
        _ratio(row["ratio_to_forked"]),
        f"{row['weights_bytes'] / 1e6:.1f}" if "weights_bytes" in row else "",
        f"{row['relative_l2']:.1e}" if row["relative_l2"] else "0",
    ]


def _inexact(rows: list[Data]) -> str:
    cells = map(_inexact_row, rows)
    head = ["CFG+DG", "steps", "time / exact", "weights, MB", "relative L2"]
    text = (
        "[Quantised weights](#quantised-weights) and [delta reuse](#delta-reuse) are not exact, and"
        " off by default. The error is that of the final latents:\n\n"
    )
    return text + table(head, cells)
