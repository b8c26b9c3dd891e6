"""The command `intaglio export`: it parses flags, exports, and prints what was made."""

from __future__ import annotations

import enum
import errno
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.options import (
    ExportRequest,
    Layout,
    Quantize,
    QuantizeEncoders,
    TextEncoders,
)
from intaglio_export.support.interpreter import check_docstrings
from intaglio_export.support.progress import shown_on
from intaglio_export.support.quiet import quiet
from intaglio_export.support.stopping import ending, stoppable


class DtypeName(enum.StrEnum):
    """The names that --dtype takes: those of torch, and the short ones."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="What to export: the folder of a diffusers pipeline (model_index.json beside"
            " transformer/, vae/, text_encoder/ and so on); a model on the Hugging Face Hub as"
            " org/name or org/name@revision, of which only the needed files are downloaded; or one"
            " .safetensors or .gguf file together with --config.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="BUNDLE",
            help="Folder to write the bundle to. A bundle that exists there is replaced.",
        ),
    ],
    layout: Annotated[
        Layout,
        typer.Option(
            help="forked, the default: one graph, in which the branches separate after the chosen"
            " block. dual: two graphs, base and degraded, which share one weights file and do"
            " more work."
        ),
    ] = Layout.forked,
    dtype: Annotated[
        DtypeName,
        typer.Option(
            help="Type of the weights, matrix products and attention. All other values stay"
            " float32, including the hidden states with the massive channels."
        ),
    ] = DtypeName.float32,
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            help="Quantise the transformer's matrix products. fp8, int8-qdq and fp4 are for engines"
            " of TensorRT-RTX and combine with --dtype; others are for ONNX Runtime on the CPU."
            " int8 and int4 quantise weights only, in blocks of 32."
            " int8-dynamic also quantises activations while the model runs, those of D_0 and D_m"
            " as differences from D_c, so it needs --layout forked; it is meant for processors with"
            " VNNI, and others may saturate. Those for engines do this too, but keep products"
            " that write the residual stream. The result is not exact: the errors of one forward"
            " pass, of D_c - D_0 and of D_c - D_m are measured and written to the manifest. Massive"
            " channels, hidden states, modulation and gates stay float32. Those for engines"
            " are refused if a forward is off by more than 15 % or a difference by more than 25 %."
        ),
    ] = None,
    quantize_encoders: Annotated[
        QuantizeEncoders | None,
        typer.Option(
            help="Store the weights of all text encoders as integers, in blocks of 32, whatever"
            " --dtype is. Such encoders run on the CPU and compute in float32. Embeddings of tokens"
            " have 8 bits in both schemes. The error of each encoder's embeddings is measured on"
            " prompts and written to the manifest."
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            metavar="M",
            help="Suppress channels after this block, counted from 0."
            " Default: the block in the settings or in a recipe, else the middle block.",
        ),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="auto|C,C,...|top:K",
            help="Channels to suppress. auto: all massive channels. A list as in 810 or 154,1446:"
            " these channels. top:K: the K largest, massive or not."
            " Default: the channels in the settings or in a recipe, else auto.",
        ),
    ] = None,
    text_encoders: Annotated[
        TextEncoders,
        typer.Option(
            help="no-t5: leave out T5 in families that can run without it (SD3, where zeros replace"
            " its part of the prompt). none: leave out all text encoders; the bundle then needs"
            " --prompt-embeds."
        ),
    ] = TextEncoders.all,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ORG/NAME",
            help="For a single file: the diffusers pipeline that it is a version of. The"
            " configuration, the tokenizers and all parts that the file lacks are taken from it.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            help="A LoRA to add to the weights, as in style.safetensors:0.8. The default scale is"
            " 1. Repeat the option for several LoRAs.",
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            metavar="F.json",
            help="Measured settings: a JSON object with any of block, channels, ref, keep,"
            " dg_scale, dg_window, cfg_scale, cfg_window, distilled, distilled_guidance, steps,"
            " height, width, max_sequence_length, name, license. It overrides a settings.json"
            " beside the model, and flags override it.",
        ),
    ] = None,
    observe: Annotated[
        bool,
        typer.Option(
            "--observe",
            help="Let the transformer also output its hidden states after every block and every"
            " block's gate, so that a step callback can read them. Every run then needs more"
            " memory.",
        ),
    ] = False,
) -> None:
    """Turn a diffusers pipeline into a bundle that `intaglio generate` runs.

    The command loads the model SOURCE, finds the massive channels of its transformer, and writes
    its networks as ONNX graphs with the op that suppresses these channels. Then it runs the graphs
    and compares them with the original. If they differ by more than 1e-4 (float32), it writes
    nothing.

    Examples, of a folder, of the Hub and of one file:

    \b
      intaglio export models/fashion-sd3 -o fashion.bundle
      intaglio export stabilityai/stable-diffusion-3.5-medium -o sd35.bundle
      intaglio export my.safetensors --config org/FLUX.1-dev -o my.bundle
    """
    # Paths may hold what rich takes for markup or an emoji: runs[red]/sd3, or a:fox:b.
    screen = Console(stderr=True, markup=False, emoji=False)
    try:
        check_docstrings()
        _check_names(output.absolute(), source, config, settings, *(lora or ()))
        request = ExportRequest(
            source,
            output,
            layout,
            dtype.value,
            block,
            channels,
            settings,
            text_encoders,
            config,
            tuple(lora or ()),
            observe,
            quantize,
            quantize_encoders,
        )
        with stoppable():
            _export(screen, request)
    except ExportError as error:
        _fail(error.message, error.exit_code)
    except MemoryError:
        _fail(_NO_MEMORY, ExitCode.NO_MEMORY)
    except KeyboardInterrupt as interrupt:
        ended, code = ending(interrupt)
        _fail(f"{ended}; nothing was written.", code)
    except OSError as error:
        _fail(_system_message(error, output), ExitCode.BAD_INPUT)
    except RuntimeError as error:
        if "not enough memory" not in str(error):  # torch's allocator has no class of its own
            raise
        _fail(_NO_MEMORY, ExitCode.NO_MEMORY)


_NO_MEMORY = (
    "There is not enough memory for this model: an export needs 2 GB and up to 1.3 times the size"
    " of the bundle's weights."
)


def _check_names(*names: str | Path | None) -> None:
    """Check that all paths are UTF-8, before an export is made that ONNX would not open."""
    for name in names:
        try:
            str(name).encode()
        except UnicodeEncodeError as error:
            shown = str(name).encode(errors="backslashreplace").decode()
            raise ExportError(
                f"The path {shown} is not UTF-8, and ONNX and safetensors cannot open such files;"
                " rename it."
            ) from error


def _export(screen: Console, request: ExportRequest) -> None:
    with shown_on(screen) as progress:
        # Imported here, because torch takes seconds and --help and usage errors should not wait.
        with quiet():
            from intaglio_export.exporter import export_bundle

        result = export_bundle(request, progress)
    for remark in result.remarks:
        screen.print(f"Note: {remark}", highlight=False)
    Console(markup=False, emoji=False).print(
        _summary(request.output, result.manifest, result.errors)
    )


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
        *_quantized_rows(manifest),
        ("verified", f"against torch, largest relative error {max(errors.values()):.1e}"),
        ("next", f"intaglio generate {output} {_condition(manifest)} -o picture.png"),
    ):
        table.add_row(name, value)
    return table


def _quantized_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a row for each part with integer weights: its scheme and the error it makes."""
    parts = {"transformer": manifest["transformer"]}
    parts |= manifest.get("prompt", {"encoders": {}})["encoders"]
    return [
        ("quantised", f"{name}: {found['scheme']}, relative error {found['error']:.1e}")
        for name, part in parts.items()
        if (found := part.get("quantized"))
    ]


def _condition(manifest: dict[str, Any]) -> str:
    """Return the flag that says what a bundle is to draw."""
    if "classes" in manifest:
        return "--class 0"
    return '--prompt "..."' if manifest["prompt"]["encoders"] else "--prompt-embeds F.safetensors"


def _system_message(error: OSError, output: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk of {output} is full; nothing was written."
    path = error.filename or output
    return f"Cannot write the bundle: {path}: {error.strerror or error}; nothing was written."


def _fail(message: str, code: int) -> NoReturn:
    with suppress(OSError):  # the terminal may be gone
        _say(message)
    raise typer.Exit(int(code))


def _say(message: str) -> None:
    """Print one line to stderr, as the C++ command does."""
    typer.echo(f"intaglio: {' '.join(message.split())}", err=True)


def main() -> None:
    """Run the command as `python -m intaglio_export`."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(export)
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # every version of typer marks a wrong call so
            raise
        _say(error.format_message())
        code = ExitCode.USAGE
    sys.exit(code)
