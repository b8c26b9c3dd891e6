"""`intaglio deploy`: parses, calls, prints."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from intaglio import _core
from intaglio.deploy.contents import Deployment
from intaglio.deploy.folder import write_folder


def known_target(target: str) -> str:
    """Refuse what cannot be written in words of our own: there is but one choice."""
    if target != "folder":
        _fail(
            f'there is no target "{target}": write intaglio deploy folder BUNDLE -o OUT',
            _core.UsageError.exit_code,
        )
    return target


def deploy(
    target: Annotated[
        str,
        typer.Argument(
            metavar="folder",
            callback=known_target,
            help="folder: one folder with bundle, engines, command and libraries, which runs"
            " wherever it is copied to.",
        ),
    ],
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that `intaglio export` wrote.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Folder to write to: a new or an empty one."
        ),
    ],
    onnxruntime: Annotated[
        Path | None,
        typer.Option(
            metavar="LIBRARY",
            help="ONNX Runtime's library to put in. Default: that of Python's onnxruntime package.",
        ),
    ] = None,
) -> None:
    """Write a bundle with everything that runs it into one folder to copy to another machine.

    The other machine needs Linux with glibc and, for a GPU, NVIDIA's driver; no Python.

    Example: intaglio deploy folder fashion.bundle -o fashion && fashion/smoke_test.sh
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        deployment = _write(bundle, output, onnxruntime)
    except _core.Error as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        _fail("interrupted; nothing was written", 128 + number)
    except OSError as error:
        _fail(
            f"cannot write {output}: {error.filename or output}: {error.strerror or error};"
            " nothing was written",
            _core.InputError.exit_code,
        )
    for remark in deployment.remarks:
        typer.echo(f"intaglio: note: {remark}", err=True)
    try:
        typer.echo(f"{output} ({deployment.bytes / 1e6:.1f} MB); try it: {output}/smoke_test.sh")
    except OSError as error:
        # What is still in the buffer would fail again, with Python's own words, when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(
            f"cannot write to standard output: {error.strerror}; {output} was written",
            _core.InputError.exit_code,
        )


def _stop(number: int, _frame: object) -> NoReturn:
    """Clean up as for Ctrl-C: what stops containers and services sends SIGTERM."""
    raise KeyboardInterrupt(number)


def _write(bundle: Path, output: Path, onnxruntime: Path | None) -> Deployment:
    screen = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_interactive)
    # Started where it can be seen only: rich ends a bar elsewhere with an empty line.
    with bar if screen.is_interactive else nullcontext():
        task = bar.add_task("checking the bundle", total=None)
        return write_folder(
            bundle,
            output,
            onnxruntime,
            lambda done, total: bar.update(
                task, description="copying", completed=done, total=total
            ),
        )


def _fail(message: str, code: int) -> NoReturn:
    """One line on stderr, as the C++ command has it."""
    typer.echo(f"intaglio: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
