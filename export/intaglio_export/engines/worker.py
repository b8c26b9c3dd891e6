"""One component built in a process of its own.

The builder cannot be interrupted while it compiles, and keeps memory; the process can be ended, and
gives it back.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from intaglio_export.engines.log import EngineLog
from intaglio_export.engines.network import BuildSpec, Progress, build_engine
from intaglio_export.engines.packages import open_package
from intaglio_export.errors import ExitCode, ExportError


@dataclass(frozen=True)
class Built:
    """A plan that was written, and what the builder says of it."""

    log: EngineLog
    plan_bytes: int
    plan_sha256: str


def build_apart(spec: BuildSpec, plan: Path, progress: Progress) -> Built:
    """Build `order` into the file `plan`, in another process. For the main thread only.

    Raises:
        ExportError: the package cannot build it, or there is not enough memory.
        KeyboardInterrupt: as it came; the process has ended then, and `plan` may be half written.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(spec, plan, there), daemon=True)
    try:
        with _interrupts_after():
            process.start()
        there.close()
        return _listen(here, process, spec, progress)
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        here.close()


@contextmanager
def _interrupts_after() -> Iterator[None]:
    """Let Ctrl-C wait until a process is wholly started; that one never gets any."""
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which it inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def _listen(
    connection: Connection, process: BaseProcess, spec: BuildSpec, progress: Progress
) -> Built:
    while True:
        try:
            message = connection.recv()
        except EOFError:
            process.join()
            raise _died(spec, process.exitcode) from None
        if isinstance(message, Built):
            return message
        if isinstance(message, Exception):
            raise message
        progress(*message)


def _died(spec: BuildSpec, code: int | None) -> ExportError:
    if code == -signal.SIGKILL:
        return ExportError(
            f"There is not enough memory to build {spec.graph}: the system ended the builder.",
            ExitCode.NO_MEMORY,
        )
    return ExportError(f"The builder ended while it built {spec.graph} (exit code {code}).")


def _run(spec: BuildSpec, plan: Path, connection: Connection) -> None:
    """What the process does; its last message is a `Built`, or an exception."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _silence()
    sent = 0.0

    def progress(what: str, done: float) -> None:
        nonlocal sent
        if time.monotonic() - sent > 0.1:  # thousands of phases a second
            sent = time.monotonic()
            connection.send((what, done))

    try:
        package = open_package(spec.backend)
        data, log = build_engine(package, spec, progress)
        plan.write_bytes(data)
        built = Built(log, data.nbytes, hashlib.sha256(data).hexdigest())
    except MemoryError:
        connection.send(
            ExportError(f"There is not enough memory to build {spec.graph}.", ExitCode.NO_MEMORY)
        )
    except Exception as error:
        connection.send(error)
    else:
        connection.send(built)


def _silence() -> None:
    """Keep what the library prints by itself off the screen; its log says the same."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
