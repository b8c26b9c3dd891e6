"""A real server on a free port, in a thread of this process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

import intaglio
from intaglio.serve.api.services import Services
from intaglio.serve.app import create_app
from intaglio.serve.local_replicas import LocalReplicas
from intaglio.serve.models.registry import Models
from intaglio.serve.settings import ServerSettings
from intaglio.serve.transport.connections import listen, uvicorn_config

PROMPT = "the dark boot"
# Far more steps than a test waits for, for a run that goes on until it is stopped.
LONG = 10_000


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true. Only broken code reaches the limit."""
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.02)


def fetch(url: str) -> httpx2.Response:
    """Fetch a URL with a timeout that is long enough for a loaded machine."""
    return httpx2.get(url, timeout=120)


def read_metric(client: httpx2.Client, name: str, **labels: str) -> float:
    """Return a value of /metrics, summed over other labels, as Prometheus' own parser reads it."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == f"intaglio_{name}" and labels.items() <= sample.labels.items()
    )


class Running:
    """A running server, with access to its application and its event loop."""

    def __init__(
        self, app: FastAPI, loop: asyncio.AbstractEventLoop, server: uvicorn.Server, url: str
    ) -> None:
        self.app, self.loop, self.server, self.url = app, loop, server, url
        self.client = httpx2.Client(base_url=url, timeout=120)

    @property
    def services(self) -> Services:
        found = self.app.state.services
        assert isinstance(found, Services)
        return found

    def post_job(self, **fields: Any) -> dict[str, Any]:
        """Post a job that has to be accepted, and return the server's view of it."""
        answer = self.client.post("/v1/jobs", json={"prompt": PROMPT, **fields})
        assert answer.status_code == 202, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    @contextmanager
    def full(self, **fields: Any) -> Iterator[None]:
        """Fill the batch with an endless run, so that other requests wait."""
        job = self.post_job(steps=LONG, n=self.services.settings.max_batch, **fields)
        try:
            wait_until(lambda: self.job(job["id"])["status"] == "running")
            yield
        finally:
            self.client.delete(f"/v1/jobs/{job['id']}").raise_for_status()

    def job(self, job_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.client.get(f"/v1/jobs/{job_id}").json()
        return shown

    def metric(self, name: str, **labels: str) -> float:
        return read_metric(self.client, name, **labels)

    def events(self, job_id: str, until: str = "", **headers: str) -> list[tuple[str, Any]]:
        """Return names and data of a job's events, up to the first event named `until`."""
        found: list[tuple[str, Any]] = []
        url = f"/v1/jobs/{job_id}/events"
        with self.client.stream("GET", url, headers=headers) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            name = ""
            for line in stream.iter_lines():
                kind, _, value = line.partition(": ")
                if kind == "event":
                    name = value
                elif kind == "data":
                    found.append((name, json.loads(value)))
                    if name == until:
                        break
        return found


@contextmanager
def serving(
    *bundles: str | Path, send_buffer: int | None = None, replicated: bool = False, **settings: Any
) -> Iterator[Running]:
    """Run a server of `bundles`, each given as FOLDER or NAME=FOLDER.

    `send_buffer` is the number of bytes that the system buffers for a client that does not read.
    If `replicated`, another process draws, as on all devices but the CPU.
    """
    given = ServerSettings.model_validate({"threads": 1} | settings)
    names = [str(bundle) for bundle in bundles]
    replicas = LocalReplicas(names, given) if replicated else None
    app = create_app(Models(names, given), given, replicas=replicas)
    listener = listen("127.0.0.1", 0)
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = uvicorn.Server(uvicorn_config(app, given))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[server.serve([listener])])
    thread.start()
    running = Running(app, loop, server, f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        assert running.client.get("/readyz").status_code == 200  # waits in the queue of the socket
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join()
        loop.close()


@pytest.fixture(scope="session")
def server(forked_bundle: Path) -> Iterator[Running]:
    """A server of the tiny bundle, with settings that most tests can share."""
    limits = {"steps": LONG, "n": 2, "deadline": 300}
    with serving(f"tiny={forked_bundle}", max_batch=2, limits=limits) as running:
        yield running


@pytest.fixture(scope="session")
def pipeline(forked_bundle: Path) -> intaglio.Pipeline:
    """The same bundle, loaded with the server's settings but without a server."""
    return intaglio.Pipeline.open(forked_bundle, threads=1, prepack=True)
