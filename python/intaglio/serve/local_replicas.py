"""A replica in a process of its own for each device, on this machine.

A device may fail in such a way that its process cannot use it any more: after an illegal address,
CUDA refuses every call of the process. The process then ends, and a new one takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from intaglio import Error, UnavailableError
from intaglio.serve import logs
from intaglio.serve.engine.dispatcher import Dispatcher, ReplicaResult
from intaglio.serve.engine.images import ImageStore
from intaglio.serve.engine.inbox import Inbox
from intaglio.serve.engine.job import Job
from intaglio.serve.errors import INTERNAL_ERROR, ApiError
from intaglio.serve.metrics import Metrics
from intaglio.serve.models.registry import Model, Models
from intaglio.serve.replica import Replica, held
from intaglio.serve.settings import ServerSettings

# Seconds between attempts to start a replica whose device does not work.
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)

_Event = tuple[str, dict[str, Any]] | ReplicaResult


class ReplicaLostError(Exception):
    """The process of a replica has ended."""


class LocalReplicas:
    """The replicas of a server. Created before the event loop runs, and started on it."""

    def __init__(
        self,
        bundles: Sequence[str],
        settings: ServerSettings,
        chosen: Mapping[str, str] | None = None,
    ) -> None:
        """Start a process for each of the settings' devices, and wait until all of them work.

        If the device is auto, `chosen` has the device of each model by its name.

        Raises intaglio.Error for a device that does not work.
        """
        self._capacity = len(settings.devices) * held(settings)
        self._changed: asyncio.Event | None = None
        self._replicas = [
            _LocalReplica(
                bundles, settings.model_copy(update={"device": device}), chosen, self._wake
            )
            for device in settings.devices
        ]
        try:
            for replica in self._replicas:
                replica.launch()
            for replica in self._replicas:
                replica.wait()
        except BaseException as error:
            for replica in self._replicas:
                replica.kill()
            if isinstance(error, ReplicaLostError):  # the driver crashed
                raise UnavailableError(str(error)) from error
            raise

    @property
    def problem(self) -> str:
        """Say why no replica works; empty if one does."""
        if any(replica.works for replica in self._replicas):
            return ""
        return "; ".join(replica.problem for replica in self._replicas)

    def start(self) -> None:
        """Begin to listen to the processes. Must be called on the event loop."""
        self._changed = asyncio.Event()
        for replica in self._replicas:
            replica.listen()

    async def close(self) -> None:
        """End the processes."""
        for replica in self._replicas:
            await replica.close()

    def dispatcher(
        self, inbox: Inbox, model: Model, store: ImageStore, metrics: Metrics
    ) -> Dispatcher:
        """Return what runs the jobs of `model`."""
        return Dispatcher(inbox, store, metrics, self._run, (ReplicaLostError,), self._capacity)

    async def _run(self, job: Job) -> AsyncGenerator[_Event, None]:
        """Run `job` on the replica with the fewest jobs. Raises ReplicaLostError and ApiError."""
        replica = await self._choose()
        async with aclosing(replica.draw(job)) as events:
            async for event in events:
                yield event

    async def _choose(self) -> _LocalReplica:
        assert self._changed
        while True:
            if working := [replica for replica in self._replicas if replica.works]:
                return min(working, key=lambda replica: replica.jobs)
            if not any(replica.starting for replica in self._replicas):
                raise ApiError(503, "device_unavailable", self.problem, retry_after=10)
            await self._changed.wait()

    def _wake(self) -> None:
        if self._changed:
            self._changed.set()
            self._changed = asyncio.Event()


class _LocalReplica:
    """One process.

    Attributes:
        works: whether it takes jobs. starting: whether it has just been started.
        problem: why it does not work, or did not work the last time.
    """

    def __init__(
        self,
        bundles: Sequence[str],
        settings: ServerSettings,
        chosen: Mapping[str, str] | None,
        changed: Callable[[], None],
    ) -> None:
        self.device = ",".join(sorted({*chosen.values()})) if chosen else settings.device
        self.works = self.starting = False
        self.problem = ""
        self._arguments = (list(bundles), settings, chosen)
        self._changed = changed
        self._process: SpawnProcess | None = None
        self._connection: Connection
        self._jobs: dict[int, asyncio.Queue[_Event | None]] = {}
        self._numbers = count()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def jobs(self) -> int:
        """The number of jobs that it holds."""
        return len(self._jobs)

    def launch(self) -> None:
        """Start a process."""
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        # A daemon: Python ends it when the server ends.
        self._process = context.Process(target=_main, args=(*self._arguments, there), daemon=True)
        self._process.start()
        there.close()

    def wait(self) -> None:
        """Wait until the process works. Raises intaglio.Error if its device does not work."""
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise ReplicaLostError(f"device {self.device} failed: {self._how_it_ended()}") from None
        if isinstance(answer, Error):
            raise answer
        self.works = True

    def kill(self) -> None:
        """End the process at once."""
        if self._process:
            self._process.kill()
            self._process.join()

    def listen(self) -> None:
        """Receive what the process sends, and replace it when it ends."""
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End the process, which ends when its connection is closed."""
        if self._keeper:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        self.kill()

    async def draw(self, job: Job) -> AsyncGenerator[_Event, None]:
        """Yield each step and preview of `job`, then the result. Raises ReplicaLostError."""
        number, events = next(self._numbers), asyncio.Queue[_Event | None]()
        self._jobs[number] = events
        try:
            admitted = job.admitted
            self._send(number, admitted.fields, admitted.pictures, job.client, job.preview)
            while event := await events.get():
                yield event
                if isinstance(event, ReplicaResult):
                    return
            raise ReplicaLostError(self.problem)
        finally:
            del self._jobs[number]
            self._send(number)  # has no effect if the job has ended

    def _send(self, *message: Any) -> None:
        with suppress(OSError):  # the process has ended, which its keeper will notice
            self._connection.send(message)

    async def _keep(self) -> None:
        """Pass on what the process sends; when it ends, start another one."""
        while True:
            await self._receive()
            self.works, self.starting = False, True
            self.problem = f"device {self.device} failed: {self._how_it_ended()}"
            logs.fault("replica_lost", device=self.device, reason=self.problem)
            for events in self._jobs.values():
                events.put_nowait(None)
            self._changed()
            await self._restart()
            logs.write("replica_works", device=self.device)
            self._changed()

    async def _restart(self) -> None:
        for attempt in count():
            try:
                self.launch()
                await asyncio.to_thread(self.wait)
                return
            except (Error, ReplicaLostError, OSError) as error:
                self.starting = False
                self.problem = str(error)
                logs.fault("replica_refused", device=self.device, reason=self.problem)
                self._changed()
            finally:
                self.starting = False
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])

    async def _receive(self) -> None:
        """Pass on what the process sends, until it ends."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def deliver(number: int, event: _Event) -> None:
            if number in self._jobs:
                self._jobs[number].put_nowait(event)

        def read(connection: Connection) -> None:
            with suppress(RuntimeError):  # the event loop is closed
                try:
                    while True:
                        loop.call_soon_threadsafe(deliver, *connection.recv())
                except (EOFError, OSError):
                    loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=read, args=(self._connection,), daemon=True).start()
        await ended.wait()

    def _how_it_ended(self) -> str:
        assert self._process
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}; the log says why"


def _main(
    bundles: list[str],
    settings: ServerSettings,
    chosen: Mapping[str, str] | None,
    connection: Connection,
) -> None:
    """Run a replica in this process until the server ends or closes the connection."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server stops first, and this process with it
    logs.set_up(logging.WARNING)  # the front writes a line for each job
    try:
        models = Models(bundles, settings, chosen)
        models.check_devices()
    except Error as error:
        connection.send(error)
        return
    asyncio.run(_serve(models, settings, connection))


async def _serve(models: Models, settings: ServerSettings, connection: Connection) -> None:
    replica = Replica(models, settings)
    loop = asyncio.get_running_loop()
    drawing: dict[int, asyncio.Task[None]] = {}

    async def draw(number: int, *request: Any) -> None:
        try:
            async with aclosing(replica.draw(*request)) as events:
                async for event in events:
                    connection.send((number, event))
        except Exception as error:
            logs.bug(error)
            connection.send((number, ReplicaResult(INTERNAL_ERROR)))

    def handle(number: int, *request: Any) -> None:
        if request:
            drawing[number] = loop.create_task(draw(number, *request))
        elif task := drawing.pop(number, None):
            task.cancel()

    def read() -> None:
        try:
            while True:
                loop.call_soon_threadsafe(handle, *connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # not after the current step, which nobody waits for any more

    connection.send("works")
    await asyncio.to_thread(read)
