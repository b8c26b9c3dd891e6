"""The command `intaglio deploy`."""

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
from intaglio.deploy.portable import Programs, write_folder
from intaglio.deploy.triton import write_repository

# The command that is suggested at the end, for each target.
TARGETS = {
    "folder": "try it: {output}/smoke_test.sh",
    "triton": "serve it: tritonserver --model-repository {output}",
}


def known_target(target: str) -> str:
    """Check the target, with a clearer message than typer has for a choice."""
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
            help="folder: one folder with bundle, command and libraries, which can be copied to"
            " another machine. triton: a model repository for Triton Inference Server.",
        ),
    ],
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that `intaglio export` wrote.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Folder to write; it must be new or empty."
        ),
    ],
    onnxruntime: Annotated[
        Path | None,
        typer.Option(
            metavar="LIBRARY",
            help="ONNX Runtime's library for the target folder. Default: the library of the Python"
            " package onnxruntime.",
        ),
    ] = None,
    provider_library: Annotated[
        Path | None,
        typer.Option(
            metavar="LIBRARY",
            help="Library of an execution provider's plugin (OpenVINO, TensorRT-RTX or WebGPU) that"
            " the target folder takes along, with its package.",
        ),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="ARCHIVE",
            help="Standalone archive of Intaglio whose programs the target folder gets, also for"
            " another kind of machine. Default: the programs that are installed here.",
        ),
    ] = None,
) -> None:
    """Write a bundle together with what runs it, for another machine or for Triton.

    The other machine needs Linux with glibc and, for a GPU, NVIDIA's driver, but no Python. For
    Triton, Intaglio has to be installed in the Python that Triton runs.

    Example: intaglio deploy folder fashion.bundle -o fashion && fashion/smoke_test.sh
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        programs = Programs(onnxruntime, provider_library, runtime)
        deployment = _write(target, bundle, output, programs)
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
        # Otherwise Python would try to write the buffer again at exit, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(
            f"cannot write to standard output: {error.strerror}; {output} was written",
            _core.InputError.exit_code,
        )


def _stop(number: int, _frame: object) -> NoReturn:
    """Clean up as for Ctrl-C, since containers and services are stopped with SIGTERM."""
    raise KeyboardInterrupt(number)


def _write(target: str, bundle: Path, output: Path, programs: Programs) -> Deployment:
    flags = {
        "--onnxruntime": programs.onnxruntime,
        "--provider-library": programs.provider,
        "--runtime": programs.runtime,
    }
    given = [flag for flag, path in flags.items() if path]
    if target == "triton" and given:
        raise _core.UsageError(
            f"{given[0]} is for intaglio deploy folder: leave it out, since Triton uses what its"
            " Python has"
        )
    if programs.runtime and len(given) > 1:
        raise _core.UsageError(
            f"--runtime has ONNX Runtime and its plugins inside: leave out {given[0]}"
        )
    screen = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_interactive)
    # The bar is started only on a terminal, since rich writes an empty line elsewhere.
    with bar if screen.is_interactive else nullcontext():
        task = bar.add_task("checking the bundle", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, description="copying", completed=done, total=total)

        if target == "triton":
            return write_repository(bundle, output, progress)
        return write_folder(bundle, output, progress, programs)


def _fail(message: str, code: int) -> NoReturn:
    """Print one line on stderr, in the form of the C++ command, and exit."""
    typer.echo(f"intaglio: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
