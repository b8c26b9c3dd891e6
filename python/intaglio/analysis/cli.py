"""`intaglio probe`: parses, calls, prints."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from intaglio_export.errors import ExitCode, ExportError, usage_error

if TYPE_CHECKING:
    from intaglio.analysis.page import Report


# Options of the comparisons, which a bundle is not asked for.
_OF_MODELS = (
    "judge", "weaker", "settings", "cfg_scale", "height", "width", "images", "seeds",
)  # fmt: skip


# Long, as typer reads the options off the signature.
def probe(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of a diffusers pipeline or a name on the Hub, as for `intaglio export`. Or"
            " a bundle that was exported with --observe, of which the first three questions are"
            " answered, without torch.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="REPORT_DIR",
            help="Folder for the report: index.html, report.md, report.json, settings.json. What is"
            " measured is kept there, so the same call goes on where it was stopped.",
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="F.txt",
            help="Prompts, one a line. Default: the judge's, else three of our own.",
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="What says which pictures are good: a classifier in ONNX and its features of real"
            " images (docs/probe.md). Default: SOURCE/judge if it is there.",
        ),
    ] = None,
    weaker: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A weaker transformer, for autoguidance. Default: SOURCE/weaker if it is there.",
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            metavar="F.json",
            help="Settings of DG to compare with CFG. Default: SOURCE/settings.json, else the"
            " massive channels at w 1.",
        ),
    ] = None,
    cfg_scale: Annotated[
        float | None,
        typer.Option(metavar="S", help="Guidance scale. Default: the settings', the pipeline's."),
    ] = None,
    height: Annotated[int | None, typer.Option(metavar="H", help="Of pictures, in pixels.")] = None,
    width: Annotated[int | None, typer.Option(metavar="W", help="Of pictures, in pixels.")] = None,
    steps: Annotated[int, typer.Option(min=4, metavar="N", help="Denoising steps.")] = 6,
    images: Annotated[
        int,
        typer.Option(
            min=2,
            metavar="N",
            help="Pictures of each way to guide, and of the settings' confirmation; those that are"
            " searched get 136. With a judge, more than 128, and more than its features.",
        ),
    ] = 136,
    seeds: Annotated[
        int,
        typer.Option(min=64, metavar="N", help="Pictures of each experiment with channels."),
    ] = 64,
) -> None:
    """Find a model's massive activations, see what they do, and choose DG's settings.

    Seven questions, each with numbers and plots: which channels are massive, where they come from,
    where in the image they are, what they do, how Detail Guidance compares with CFG alone, how it
    fails, and which settings to use.

    Example: intaglio probe models/fashion-sd3 -o report

    then open report/index.html; `intaglio export --settings report/settings.json` uses the answer.
    """
    with _one_line_of_errors(output), _bar() as progress:
        if (Path(source) / "bundle.json").is_file():
            _refuse_options_of_models(context)
            from intaglio.analysis.bundle_probe import probe_bundle

            report = probe_bundle(Path(source), output, prompts, steps, progress)
        else:
            probing = _probing()
            request = probing.ProbeRequest(
                source, output, prompts, judge, weaker, settings, cfg_scale, height, width,
                steps, images, seeds,
            )  # fmt: skip
            report = probing.probe(request, progress)
    _print(report, output)


def _refuse_options_of_models(context: typer.Context) -> None:
    for name in _OF_MODELS:
        origin = context.get_parameter_source(name)
        if origin is not None and origin.name == "COMMANDLINE":
            raise usage_error(
                f"--{name.replace('_', '-')} is of no use for a bundle, of which the first three"
                " questions are answered; leave it out, or probe the diffusers model."
            )


def _probing() -> ModuleType:
    """`intaglio.analysis.probe`, which needs torch."""
    from intaglio_export.support.quiet import quiet

    try:
        with quiet():
            from intaglio.analysis import probe as probing
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in {"", "intaglio", "intaglio_export"}:
            raise  # a bug of ours, not an extra that was left out
        raise ExportError(
            f"A model is probed with the Python package {missing}: pip install"
            ' "intaglio[export,probe]". An observed bundle is probed without torch.',
            ExitCode.UNAVAILABLE,
        ) from error
    return probing


@contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    """A progress bar where it can be seen only: rich ends one elsewhere with an empty line."""
    screen = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_interactive)
    with bar if screen.is_interactive else nullcontext():
        task = bar.add_task("Starting", total=1.0)

        def progress(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        yield progress


@contextmanager
def _one_line_of_errors(output: Path) -> Iterator[None]:
    """What a user's mistake or machine can cause ends the command with a sentence."""
    try:
        yield
    except ExportError as error:
        _fail(error.message, error.exit_code)
    except KeyboardInterrupt:
        _fail(
            f"Interrupted; what was measured is in {output}: the same call goes on.",
            ExitCode.INTERRUPTED,
        )
    except MemoryError:
        _fail("There is not enough memory for this model.", ExitCode.NO_MEMORY)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        _fail(f"Cannot write {error.filename or output}: {reason}.", ExitCode.BAD_INPUT)


def _print(report: Report, output: Path) -> None:
    out = Console()
    for number, section in enumerate(report.sections, 1):
        out.print(f"[bold]{number}. {section.title}[/bold]")
        for claim in section.claims:
            out.print(f"   {claim}", highlight=False, markup=False)
    out.print(f"\n{output / 'index.html'} has the plots.", highlight=False)


def _fail(message: str, code: ExitCode) -> NoReturn:
    """One line on stderr, as the C++ command has it."""
    typer.echo(f"intaglio: {' '.join(message.split())}", err=True)
    raise typer.Exit(int(code))
