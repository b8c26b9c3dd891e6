"""The command `intaglio probe`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from intaglio_export.errors import ExitCode, ExportError, usage_error
from intaglio_export.support.progress import shown_on
from intaglio_export.support.stopping import ending, stoppable

if TYPE_CHECKING:
    from intaglio.analysis.report.page import Report


# Options that apply only to a diffusers model.
_MODEL_OPTIONS = (
    "judge", "weaker", "settings", "cfg_scale", "height", "width", "images", "seeds",
)  # fmt: skip


# The signature is long because typer reads the options from it.
def probe(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folder of a diffusers pipeline or a name on the Hub, as for `intaglio export`. Or"
            " a bundle that was exported with --observe, for which the first three questions are"
            " answered without torch. Several with --sweep.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="REPORT_DIR",
            help="Folder for the report: index.html, report.md, report.json, settings.json. It also"
            " keeps the measurements, so the same command continues where it was stopped.",
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="F.txt",
            help="Prompts, one on each line. Default: the judge's prompts, else built-in ones.",
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A classifier in ONNX and its features of real images, which measure how good"
            " pictures are (docs/probe.md). Default: SOURCE/judge if it exists.",
        ),
    ] = None,
    weaker: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A weaker transformer, for autoguidance. Default: SOURCE/weaker if it exists.",
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            metavar="F.json",
            help="Settings of DG to compare with CFG. Default: SOURCE/settings.json, else the"
            " massive channels with w 1.",
        ),
    ] = None,
    cfg_scale: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="Guidance scale. Default: that of the settings, else the pipeline's."
        ),
    ] = None,
    height: Annotated[
        int | None, typer.Option(metavar="H", help="Height of the pictures in pixels.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(metavar="W", help="Width of the pictures in pixels.")
    ] = None,
    steps: Annotated[int, typer.Option(min=4, metavar="N", help="Denoising steps.")] = 6,
    images: Annotated[
        int,
        typer.Option(
            min=2,
            metavar="N",
            help="Pictures for each guidance method and for the confirmation of the settings; the"
            " search takes 136 for each setting. With a judge this has to exceed the number of its"
            " features.",
        ),
    ] = 136,
    seeds: Annotated[
        int,
        typer.Option(min=64, metavar="N", help="Pictures for each experiment with channels."),
    ] = 64,
    compare: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Compare the massive channels of several checkpoints, against their width and"
            " depth, instead of probing one.",
        ),
    ] = False,
) -> None:
    """Find a model's massive activations, measure what they do, and choose settings for DG.

    The report answers eight questions with numbers and plots: which channels are massive, where
    they come from, where in the image they are, what they do, how Detail Guidance compares with CFG
    alone, how it fails, which settings to use, and which keys attention goes to.

    Example: intaglio probe models/fashion-sd3 -o report

    Then open report/index.html. With --settings report/settings.json, `intaglio export` uses the
    settings.
    """
    with _one_line_of_errors(output), shown_on(Console(stderr=True)) as progress:
        source = sources[0]
        if compare:
            _refuse_model_options(context, "a sweep")
            report = _import("sweep").sweep(sources, output, prompts, steps, progress)
        elif len(sources) > 1:
            raise usage_error(
                f"{sources[1]} is a second source; give one, or compare both with --sweep."
            )
        elif (Path(source) / "bundle.json").is_file():
            _refuse_model_options(context, "a bundle")
            from intaglio.analysis.probe.bundle_probe import probe_bundle

            report = probe_bundle(Path(source), output, prompts, steps, progress)
        else:
            model_probe = _import("model_probe")
            request = model_probe.ProbeRequest(
                source, output, prompts, judge, weaker, settings, cfg_scale, height, width,
                steps, images, seeds,
            )  # fmt: skip
            report = model_probe.probe(request, progress)
    _print(report, output)


def _refuse_model_options(context: typer.Context, what: str) -> None:
    for name in _MODEL_OPTIONS:
        origin = context.get_parameter_source(name)
        if origin is not None and origin.name == "COMMANDLINE":
            raise usage_error(
                f"--{name.replace('_', '-')} does not apply to {what}; leave it out, or probe"
                " one diffusers model."
            )


def _import(name: str) -> ModuleType:
    """Import a module of `probe` for diffusers models, which needs torch."""
    from intaglio_export.support.interpreter import check_docstrings
    from intaglio_export.support.quiet import quiet

    check_docstrings()
    try:
        with quiet():
            module = import_module(f"intaglio.analysis.probe.{name}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in {"", "intaglio", "intaglio_export"}:
            raise  # a bug of this project, not an extra that is not installed
        raise ExportError(
            f"Probing a model needs the Python package {missing}: pip install"
            ' "intaglio[export,probe]". An observed bundle can be probed without torch.',
            ExitCode.UNAVAILABLE,
        ) from error
    return module


@contextmanager
def _one_line_of_errors(output: Path) -> Iterator[None]:
    """End the command with one sentence for errors that the user or the machine causes."""
    try:
        with stoppable():
            yield
    except ExportError as error:
        _fail(error.message, error.exit_code)
    except MemoryError:
        _fail("There is not enough memory for this model.", ExitCode.NO_MEMORY)
    except KeyboardInterrupt as interrupt:
        ended, code = ending(interrupt)
        _fail(f"{ended}; the same command continues from the measurements in {output}.", code)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        _fail(f"Cannot write {error.filename or output}: {reason}.", ExitCode.BAD_INPUT)


def _print(report: Report, output: Path) -> None:
    out = Console()
    for number, section in enumerate(report.sections, 1):
        out.print(f"[bold]{number}. {section.title}[/bold]")
        for claim in section.claims:
            out.print(f"   {claim}", highlight=False, markup=False)
    out.print(
        f"\n{output / 'index.html'} has the plots.", highlight=False, markup=False, emoji=False
    )


def _fail(message: str, code: int) -> NoReturn:
    """Print one line to stderr, as the C++ command does, and exit."""
    with suppress(OSError):  # the terminal may be gone
        typer.echo(f"intaglio: {' '.join(message.split())}", err=True)
    raise typer.Exit(int(code))
