"""The command `intaglio build`: it parses flags, builds, and prints what was built."""

from __future__ import annotations

import enum
import errno
import os
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from intaglio_export.engines.builder import BuildRequest, build_engines, plan_build
from intaglio_export.engines.bundle import Component
from intaglio_export.engines.report import as_text, plan_table, report_table
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.support.stopping import check_stopped, ending, stoppable


class Backend(enum.StrEnum):
    """The package that builds."""

    rtx = "tensorrt-rtx"
    tensorrt = "tensorrt"


def build(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that intaglio export wrote.")
    ],
    backend: Annotated[
        Backend,
        typer.Option(
            help="tensorrt-rtx: for the GeForce, RTX and workstation GPUs in --arch; the machine"
            " that builds needs no GPU. tensorrt: for the GPU in this machine, which may be a"
            " data-centre GPU."
        ),
    ],
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="SM,SM,...",
            help="The GPUs to build for: sm75 (not with version 1.7), sm80, sm86, sm89, sm120,"
            " sm121. Default: all from sm80 on; one engine holds them all and is no larger.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="float32|float16|bfloat16",
            help="The precision that the bundle must have, because an engine has the types of its"
            " graph. intaglio export --dtype chooses it.",
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="batch=1:1:8,height=...,width=...",
            help="The number of images of one request and their sides in pixels, as MIN:OPT:MAX or"
            " one number. Repeat the option for several profiles. Default: batch=1:1:8, and sides"
            " from half to one and a half times the bundle's default size.",
        ),
    ] = None,
    low_memory: Annotated[
        bool,
        typer.Option(
            "--low-memory",
            help="Allow the runtime to keep the weights on the host and stream them, for GPUs that"
            " cannot hold them.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show what would be built, with estimates, and build nothing."
        ),
    ] = False,
) -> None:
    """Build TensorRT engines for a bundle's graphs, with or without a GPU.

    The command builds one engine for each graph of BUNDLE (transformer, text encoders, VAE encoder
    and decoder) and stores it in BUNDLE/engines. It keeps engines that exist for the same graph,
    weights, package, GPUs, precision and profiles. engine.json beside the engines describes them:
    inputs, layers, memory, and the type of the image stream after each block.

    Examples, the second of larger images:

    \b
      intaglio build fashion.bundle --backend tensorrt-rtx --arch sm89,sm120
      intaglio build sd35.bundle --backend tensorrt-rtx \\
        --profile batch=1,height=768:1024:1344,width=768:1024:1344
    """
    request = BuildRequest(bundle, backend, arch, precision, tuple(profile or ()), low_memory)
    try:
        if dry_run:
            _show(plan_table(plan_build(request)), "nothing was built")
        else:
            with stoppable():
                _build(request)
    except ExportError as error:
        _fail(error.message, error.exit_code)
    except MemoryError:
        _fail("There is not enough memory to build the engines.", ExitCode.NO_MEMORY)
    except KeyboardInterrupt as interrupt:
        ended, code = ending(interrupt)
        _fail(f"{ended}; the engines that were ready are in {bundle / 'engines'}.", code)
    except OSError as error:
        _fail(_system_message(error, bundle), ExitCode.BAD_INPUT)


def _build(request: BuildRequest) -> None:
    screen = Console(stderr=True)
    # What the builder does names nodes of the graph, in which there may be brackets.
    name = TextColumn("{task.description}", markup=False)
    phase = TextColumn("{task.fields[what]}", markup=False)
    columns = (name, BarColumn(), TimeElapsedColumn(), phase)
    bar = Progress(*columns, console=screen, disable=not screen.is_interactive)
    # The bar is started in a terminal only: elsewhere rich would print an empty line at its end.
    with bar if screen.is_interactive else nullcontext():
        plan = build_engines(request, _Bars(bar))
    _show(report_table(plan), f"the engines are in {plan.folder}")


def _show(table: RenderableType, so_far: str) -> None:
    console = Console(markup=False, emoji=False)
    try:
        if console.is_terminal:
            console.print(table)
        else:
            typer.echo(as_text(table))
    except OSError as error:
        # Otherwise Python would write the rest again when it ends, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ExportError(
            f"The report cannot be written to standard output ({error.strerror}); {so_far}."
        ) from error


class _Bars:
    """A line for each component, in a terminal with its progress, its time, and what the builder
    does."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = TaskID(-1)

    def start(self, component: Component) -> None:
        self._task = self._bar.add_task(component.path, total=1.0, what="")
        if self._bar.disable:
            typer.echo(f"Building {component.path}", err=True)

    def update(self, what: str, done: float) -> None:
        check_stopped()
        self._bar.update(self._task, completed=done, what=what)

    def finish(self) -> None:
        self._bar.update(self._task, completed=1.0, what="")


def _system_message(error: OSError, bundle: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk of {bundle} is full."
    path = error.filename or bundle
    return f"Cannot write the engines: {path}: {error.strerror or error}."


def _fail(message: str, code: int) -> NoReturn:
    with suppress(OSError):  # the terminal may be gone
        typer.echo(f"intaglio: {' '.join(message.split())}", err=True)
    raise typer.Exit(int(code))
