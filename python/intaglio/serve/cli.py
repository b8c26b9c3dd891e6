"""The command `intaglio serve`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import uvicorn
from fastapi import FastAPI

from intaglio import Error
from intaglio.serve import logs
from intaglio.serve.app import create_app
from intaglio.serve.engine.worker import Worker
from intaglio.serve.local_replicas import LocalReplicas
from intaglio.serve.models.registry import Models
from intaglio.serve.settings import ServerSettings, read_settings
from intaglio.serve.transport.connections import listen, uvicorn_config


def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE",
            help="Folders that `intaglio export` wrote; NAME=FOLDER serves one under another name.",
        ),
    ],
    host: Annotated[
        str | None, typer.Option(help="Address to listen on [127.0.0.1].", metavar="ADDRESS")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port to listen on; 0 selects a free one [8000].", metavar="N"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="File with settings and limits (docs/serving.md).", metavar="F.toml"),
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="File with one API key per line.", metavar="FILE")
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin whose pages may call the server; may be repeated.", metavar="ORIGIN"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Device to run on, as for `intaglio generate`, or several: cuda:0,cuda:1.",
            metavar="NAMES",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="What OpenVINO computes in, as for `intaglio generate`.", metavar="TYPE"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Number of CPU threads; 0 means as many as the process may use.", metavar="N"
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(help="Largest number of images that share one run [8].", metavar="N"),
    ] = None,
    log_prompts: Annotated[
        bool | None, typer.Option("--log-prompts", help="Write prompts to the log.")
    ] = None,
) -> None:
    """Serve bundles over HTTP: OpenAI's image endpoint, jobs with live previews, and a page.

    Example: intaglio serve fashion.bundle
    """
    flags = {
        "host": host, "port": port, "api_keys": api_keys, "cors": cors or None, "device": device,
        "precision": precision, "threads": threads, "max_batch": max_batch,
        "log_prompts": log_prompts,
    }  # fmt: skip
    try:
        settings = read_settings(config, flags)
        models = Models(bundles, settings)
        listener = listen(settings.host, settings.port)
        replicas = _replicas(models, bundles, settings)
        # After the other checks, since it may create a folder.
        app = create_app(models, settings, replicas=replicas)
    except Error as error:
        _fail(str(error), error.exit_code)
    logs.set_up()
    logs.write("start", models=[model.name for model in models], device=settings.device)
    asyncio.run(Server(app, settings).serve([listener]))
    _leave()


def _replicas(models: Models, bundles: list[str], settings: ServerSettings) -> LocalReplicas | None:
    """Return the processes of the devices; None if all models run on the CPU.

    Only a device that is lost needs a process that can be replaced.
    """
    if settings.device not in {"auto", "cpu"}:
        return LocalReplicas(bundles, settings)
    devices = models.check_devices()
    # A new process must not take the CPU because the device that auto chose is lost.
    return LocalReplicas(bundles, settings, devices) if {*devices.values()} != {"cpu"} else None


class Server(uvicorn.Server):
    """A uvicorn server that keeps answering while it drains the request queue before it stops."""

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        super().__init__(uvicorn_config(app, settings))
        self._app, self._settings = app, settings
        self._draining: list[asyncio.Task[None]] = []

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()  # uvicorn's handler would make the signal the exit code, not 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._stop)
        await super().startup(sockets)
        assert sockets
        host, port = sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"intaglio: serving on http://{shown}:{port}")

    def _stop(self) -> None:
        """Drain at the first signal; end the running requests at their next step at the second."""
        grace = 0 if self._draining else self._settings.grace
        self._draining.append(asyncio.get_running_loop().create_task(self._drain(grace)))
        what = "running requests are stopped"
        if grace:
            what = "running requests may finish; a second signal stops them"
        logs.write("stopping", grace=grace, what=what)

    async def _drain(self, grace: float) -> None:
        try:
            if self.started:  # otherwise there is no queue yet
                await self._app.state.services.queue.drain(grace)
        finally:
            self.should_exit = True


def _leave() -> None:
    """End the process at once if a worker still runs, which is the case while it loads a model.

    Otherwise Python would wait for it, or finalize while its C++ code runs.
    """
    if any(isinstance(thread, Worker) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"intaglio: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
