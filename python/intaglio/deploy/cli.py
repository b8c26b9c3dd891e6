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
from intaglio.deploy.triton import write_repository

# What to do with the output, for each target.
TARGETS = {
    "folder": "try it: {output}/smoke_test.sh",
    "triton": "serve it: tritonserver --model-repository {output}",
}


def known_target(target: str) -> str:
    """Refuse what cannot be written in words of our own: there are but two choices."""
    if target not in TARGETS:
        _fail(
            f'there is no target "{target}": write intaglio deploy folder BUNDLE -o OUT, or triton',
            _core.UsageError.exit_code,
        )
    return target


def deploy(
    target: Annotated[
        str,
        typer.Argument(
            metavar="folder|triton",
            callback=known_target,
            help="folder: one folder with bundle, command and libraries, which runs"
            " wherever it is copied to. triton: a model repository for Triton Inference Server.",
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
            help="ONNX Runtime's library to put into a folder. Default: that of the Python package"
            " onnxruntime.",
        ),
    ] = None,
) -> None:
    """Write a bundle with what runs it: into one folder for another machine, or for Triton.

    The other machine needs Linux with glibc and, for a GPU, NVIDIA's driver; no Python. Triton's
    Python needs Intaglio.

    Example: intaglio deploy folder fashion.bundle -o fashion && fashion/smoke_test.sh
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        deployment = _write(target, bundle, output, onnxruntime)
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
        use = TARGETS[target].format(output=output)
        typer.echo(f"{output} ({deployment.bytes / 1e6:.1f} MB); {use}")
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


def _write(target: str, bundle: Path, output: Path, onnxruntime: Path | None) -> Deployment:
    if target == "triton" and onnxruntime:
        raise _core.UsageError(
            "--onnxruntime is for intaglio deploy folder: Triton's Python has its own; leave it out"
        )
    screen = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_interactive)
    # Started where it can be seen only: rich ends a bar elsewhere with an empty line.
    with bar if screen.is_interactive else nullcontext():
        task = bar.add_task("checking the bundle", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, description="copying", completed=done, total=total)

        if target == "triton":
            return write_repository(bundle, output, progress)
        return write_folder(bundle, output, onnxruntime, progress)


def _fail(message: str, code: int) -> NoReturn:
    """One line on stderr, as the C++ command has it."""
    typer.echo(f"intaglio: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
