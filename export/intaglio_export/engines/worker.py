"""Build one component in a process of its own.

The builder cannot be interrupted while it compiles, and it keeps its memory. A process can be
ended, and then its memory is free again.
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

from intaglio_export.engines.bindings import Binding
from intaglio_export.engines.log import EngineLog
from intaglio_export.engines.network import BuildSpec, Progress, build_engine
from intaglio_export.engines.packages import open_package
from intaglio_export.errors import ExitCode, ExportError


@dataclass(frozen=True)
class Built:
    """A plan that was written, and what `Engine` says of it."""

    header: bytes
    bindings: tuple[Binding, ...]
    log: EngineLog
    plan_bytes: int
    plan_sha256: str


def build_apart(spec: BuildSpec, plan: Path, progress: Progress) -> Built:
    """Build `spec` into the file `plan` in another process. Only the main thread may call this.

    Raises:
        ExportError: the package cannot build the engine, or there is not enough memory.
        KeyboardInterrupt: the process has ended, and `plan` may be incomplete.
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
    """Delay Ctrl-C until a process has started, which itself ignores Ctrl-C."""
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the process
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
    """Build in the process. The last message that it sends is a `Built` or an exception."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _silence()
    sent = 0.0

    def progress(what: str, done: float) -> None:
        nonlocal sent
        if time.monotonic() - sent > 0.1:  # there may be thousands of phases per second
            sent = time.monotonic()
            connection.send((what, done))

    try:
        package = open_package(spec.backend)
        engine = build_engine(package, spec, progress)
        plan.write_bytes(engine.plan)
        digest = hashlib.sha256(engine.plan).hexdigest()
        built = Built(engine.header, engine.bindings, engine.log, engine.plan.nbytes, digest)
    except MemoryError:
        connection.send(
            ExportError(f"There is not enough memory to build {spec.graph}.", ExitCode.NO_MEMORY)
        )
    except Exception as error:
        connection.send(error)
    else:
        connection.send(built)


def _silence() -> None:
    """Discard what the library prints, because its log holds the same messages."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
