"""`intaglio export`: parses, calls, prints."""

from __future__ import annotations

import enum
import errno
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.options import ExportRequest
from intaglio_export.support.quiet import quiet


class Layout(enum.StrEnum):
    """How the branches are laid out in graphs."""

    forked = "forked"
    dual = "dual"


class Dtype(enum.StrEnum):
    """Of matrix products and attention."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Quantize(enum.StrEnum):
    """Integer weights of the transformer's matrix products."""

    int8 = "int8"
    int4 = "int4"
    int8_dynamic = "int8-dynamic"


class TextEncoders(enum.StrEnum):
    """Which text encoders go into the bundle."""

    all = "all"
    no_t5 = "no-t5"
    none = "none"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of a diffusers pipeline, as save_pretrained writes it: model_index.json"
            " beside transformer/, vae/, text_encoder/ and so on. Or a name on the Hugging Face"
            " Hub, org/name or org/name@revision, of which what is needed is downloaded. Or one"
            " .safetensors file of SD3 or FLUX, with --config.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="BUNDLE",
            help="Folder to write the bundle to. A bundle that is there is replaced.",
        ),
    ],
    layout: Annotated[
        Layout,
        typer.Option(
            help="forked: one graph whose branches part after the chosen block (less work, the"
            " default). dual: two graphs, base and degraded, over one weights file."
        ),
    ] = Layout.forked,
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Type of the weights, matrix products and attention. Everything between them, the"
            " stream of the massive channels above all, stays float32."
        ),
    ] = Dtype.float32,
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            help="Store the weights of the transformer's matrix products as integers, for ONNX"
            " Runtime on the CPU. int8, int4: weights only, in blocks of 32. int8-dynamic:"
            " activations too, as they come, for processors with VNNI: others may saturate. Not"
            " exact: the error of a forward is measured and written to the manifest; that of D_c -"
            " D_m is several times as large (docs/performance-quantised.md). Massive channels, the"
            " stream, modulation and gates stay float32."
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            metavar="M",
            help="Suppress channels after this block, counted from 0."
            " Default: what settings or a recipe say, else the middle block.",
        ),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="auto|C,C,...|top:K",
            help="Channels to suppress. auto: those found massive; 810 or 154,1446: these;"
            " top:K: the K largest, massive or not."
            " Default: what settings or a recipe say, else auto.",
        ),
    ] = None,
    text_encoders: Annotated[
        TextEncoders,
        typer.Option(
            help="no-t5: leave T5 out where the family can do without it (SD3: zeros stand for its"
            " part of the prompt). none: the bundle is driven by --prompt-embeds alone."
        ),
    ] = TextEncoders.all,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ORG/NAME",
            help="For a single file: the diffusers pipeline that it is a version of. Configuration,"
            " tokenizers and whatever the file does not hold come from there.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            help="A LoRA to add to the weights, at SCALE (1 if not said): style.safetensors:0.8."
            " May be given several times.",
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            metavar="F.json",
            help="Measured settings: a JSON object with any of block, channels, ref, keep,"
            " dg_scale, dg_window, cfg_scale, cfg_window, distilled_guidance, steps, height, width,"
            " max_sequence_length, name, license. It wins over a settings.json beside the model,"
            " and flags win over it.",
        ),
    ] = None,
    observe: Annotated[
        bool,
        typer.Option(
            "--observe",
            help="Let the transformer also output its image stream after every block, and every"
            " block's gate, for a step callback to read. Takes memory on every run.",
        ),
    ] = False,
) -> None:
    """Turn a diffusers pipeline into a bundle that `intaglio generate` runs.

    The model SOURCE is loaded, the large channels of its transformer are measured, and its networks
    are written as ONNX graphs with the op that suppresses those channels inside. Then the written
    graphs are run against the original; if they differ by more than 1e-4 (float32), nothing is
    written.

    Example: intaglio export models/fashion-sd3 -o fashion.bundle

    From the Hub: intaglio export stabilityai/stable-diffusion-3.5-medium -o sd35.bundle

    One file: intaglio export my.safetensors --config black-forest-labs/FLUX.1-dev -o my.bundle
    """
    screen = Console(stderr=True)
    try:
        request = ExportRequest(
            source,
            output,
            layout,
            dtype,
            block,
            channels,
            settings,
            text_encoders,
            config,
            tuple(lora or ()),
            observe,
            quantize,
        )
        _export(screen, request)
    except ExportError as error:
        _fail(error.message, error.exit_code)
    except KeyboardInterrupt:
        _fail("Interrupted; nothing was written.", ExitCode.INTERRUPTED)
    except MemoryError:
        _fail(_NO_MEMORY, ExitCode.NO_MEMORY)
    except OSError as error:
        _fail(_system_message(error, output), ExitCode.BAD_INPUT)
    except RuntimeError as error:
        if "not enough memory" not in str(error):  # torch's allocator has no class of its own
            raise
        _fail(_NO_MEMORY, ExitCode.NO_MEMORY)


_NO_MEMORY = (
    "There is not enough memory for this model: an export needs up to 1.3 times the weights of the"
    " bundle and 2 GB."
)


def _export(screen: Console, request: ExportRequest) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_interactive)
    # Started where it can be seen only: rich ends a bar elsewhere with an empty line.
    with bar if screen.is_interactive else nullcontext():
        task = bar.add_task("Starting", total=1.0)
        # Imported here: torch takes seconds, and --help and usage errors should not wait for it.
        with quiet():
            from intaglio_export.exporter import export_bundle

        result = export_bundle(
            request, lambda what, done: bar.update(task, description=what, completed=done)
        )
    for remark in result.remarks:
        screen.print(f"Note: {remark}", highlight=False)
    Console().print(_summary(request.output, result.manifest, result.errors))


def _summary(output: Path, manifest: dict[str, Any], errors: dict[str, float]) -> Table:
    found = manifest["massive_activations"]
    kind = "massive" if found["massive"] else "not massive, merely chosen"
    ratios = ", ".join(f"{ratio:.1f}" for ratio in found["ratio"][:8])
    size = sum(file["bytes"] for file in manifest["files"].values())
    chosen = ", ".join(map(str, found["channels"][:8]))
    more = f" and {len(found['channels']) - 8} more" if len(found["channels"]) > 8 else ""
    defaults = manifest["defaults"]
    graphs = manifest["transformer"]["graphs"]
    observed = any(len(graphs[name]["outputs"]) > 1 for name in graphs if name != "conditioning")
    extras = ["observed"] if observed else []
    if quantized := manifest["transformer"].get("quantized"):
        extras.append(f"{quantized['scheme']} weights")
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("bundle", f"{output} ({size / 1e6:.1f} MB, {len(manifest['files'])} files)"),
        ("model", f"{manifest['name']} ({manifest['family']}, licence {manifest['license']})"),
        ("layout", ", ".join([manifest["layout"], manifest["dtype"], *extras])),
        ("channels", f"{chosen}{more} after block {found['block']} ({found['found_by']}; {kind})"),
        ("", f"{ratios} times the median channel's mean |z|"),
        (
            "defaults",
            f"{defaults['steps']} steps, cfg_scale {defaults['cfg_scale']:g},"
            f" dg_scale {defaults['dg_scale']:g}, {defaults['width']}x{defaults['height']}",
        ),
        ("verified", f"against torch, largest relative error {max(errors.values()):.1e}"),
        ("next", f"intaglio generate {output} {_condition(manifest)} -o picture.png"),
    ):
        table.add_row(name, value)
    return table


def _condition(manifest: dict[str, Any]) -> str:
    """What a bundle is asked to draw by."""
    if "classes" in manifest:
        return "--class 0"
    return '--prompt "..."' if manifest["prompt"]["encoders"] else "--prompt-embeds F.safetensors"


def _system_message(error: OSError, output: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk of {output} is full; nothing was written."
    place = error.filename or output
    return f"Cannot write the bundle: {place}: {error.strerror or error}; nothing was written."


def _fail(message: str, code: ExitCode) -> None:
    _say(message)
    raise typer.Exit(int(code))


def _say(message: str) -> None:
    """One line on stderr, as the C++ command has it."""
    typer.echo(f"intaglio: {' '.join(message.split())}", err=True)


def main() -> None:
    """`python -m intaglio_export`: the same command on its own."""
    app = typer.Typer(add_completion=False)
    app.command()(export)
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what marks a wrong call, in every version
            raise
        _say(error.format_message())
        code = ExitCode.USAGE
    sys.exit(code)
