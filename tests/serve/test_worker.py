"""The worker, the queue and the models when the server has a fault, is full, or stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import intaglio
from intaglio import Pipeline, UsageError
from intaglio.serve.engine import worker
from intaglio.serve.engine.images import ImageStore
from intaglio.serve.engine.job import AdmittedRequest, Job
from intaglio.serve.engine.request_queue import RequestQueue
from intaglio.serve.errors import CANCELLED, ApiError
from intaglio.serve.metrics import Metrics
from intaglio.serve.models.registry import Models, open_model
from intaglio.serve.settings import ServerSettings
from tests.serve.conftest import LONG, PROMPT, Running, serving, wait_until

FAULT = RuntimeError("a fault of the test")


class Decoder(ThreadPoolExecutor):
    """The executor of the worker, which can be patched apart from others."""


def draw(server: Running) -> Any:
    return server.client.post("/v1/images/generations", json={"prompt": PROMPT, "steps": 1})


def failing_once(call: Callable[..., Any]) -> Callable[..., Any]:
    faults = [FAULT]

    def wrapped(*args: Any, **keywords: Any) -> Any:
        if faults:
            raise faults.pop()
        return call(*args, **keywords)

    return wrapped


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (worker, "Batch"),
        (intaglio.Batch, "accepts"),
        (intaglio.Batch, "add"),
        (intaglio.Batch, "step"),
        (worker.Worker, "_fill_batch"),
        (Decoder, "submit"),
    ],
)
def test_a_fault_fails_its_own_request_only(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.setattr(worker, "ThreadPoolExecutor", Decoder)
    with serving(forked_bundle) as server:
        monkeypatch.setattr(owner, name, failing_once(getattr(owner, name)))
        answer = draw(server)
        assert answer.status_code == 500, answer.text
        assert answer.json()["error"]["code"] == "internal_error"
        assert draw(server).status_code == 200
        assert server.metric("running") + server.metric("queue_depth") == 0


def test_a_failing_preview_does_not_fail_its_job(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "data_url", failing_once(worker.data_url))
    with serving(forked_bundle, limits={"steps": LONG}) as server:
        made = server.post_job(steps=LONG)
        url = f"/v1/jobs/{made['id']}"
        with server.client.stream("GET", f"{url}/events"):
            wait_until(lambda: not server.services.jobs[made["id"]].preview)
            assert server.client.delete(url).json()["status"] == "cancelled"
    assert [r.exc_info[1] for r in caplog.records if r.message == "bug" and r.exc_info] == [FAULT]


def test_images_expire_after_a_fault_too(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ImageStore, "expire", failing_once(ImageStore.expire))
    with serving(forked_bundle, image_seconds=0.1) as server:
        assert draw(server).status_code == 200
        folder = server.services.store.folder
        wait_until(lambda: not list(folder.iterdir()))
    assert [r.exc_info[1] for r in caplog.records if r.message == "bug" and r.exc_info] == [FAULT]


def test_a_fault_fails_running_and_waiting_requests(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(forked_bundle, max_batch=1, limits={"steps": LONG}) as server:
        runs = server.post_job(steps=LONG)
        wait_until(lambda: server.job(runs["id"])["status"] == "running")
        waits = server.post_job(steps=1)
        monkeypatch.setattr(worker.Worker, "_fill_batch", failing_once(worker.Worker._fill_batch))
        for job in (runs, waits):
            assert server.events(job["id"])[-1][0] == "error"
            assert server.job(job["id"])["error"]["code"] == "internal_error"
        assert draw(server).status_code == 200


def test_a_stopped_job_is_not_decoded() -> None:
    failed: list[tuple[Job, ApiError]] = []
    inbox = SimpleNamespace(fail=lambda job, error: failed.append((job, error)))
    job = job_of("a")
    job.stop_error = CANCELLED
    worker.Worker._finish(SimpleNamespace(_inbox=inbox), job, step=None)  # type: ignore[arg-type]
    assert failed == [(job, CANCELLED)]


def test_no_job_joins_while_a_full_batch_waits_to_be_decoded() -> None:
    first: Future[None] = Future()
    second: Future[None] = Future()
    first.set_running_or_notify_cancel()
    driver: Any = SimpleNamespace(
        _max_batch=2, _members={0: "one"}, _decoding={first: 1, second: 1}
    )
    keeps_up = worker.Worker._decoder_keeps_up
    assert keeps_up(driver)  # one image is being decoded and one waits
    third: Future[None] = Future()
    driver._decoding[third] = 1
    assert not keeps_up(driver)
    first.set_result(None)
    second.set_running_or_notify_cancel()
    assert keeps_up(driver)
    assert set(driver._decoding) == {second, third}


def job_of(client: str, model: Any = None) -> Job:
    options = {"steps": 1, "height": 8, "width": 8}
    return Job(AdmittedRequest(model, options, 1, {}), client, stored=False, preview=False)


class Idle:
    """A runner that takes no job."""

    def wake(self) -> None: ...

    def stop(self, job: Job, error: ApiError) -> None: ...

    def join(self) -> None: ...


def submitted(clients: str, limit: int) -> list[Job | ApiError]:
    """Submit a job for each of the clients in turn. Return each job, or the error it met."""
    model: Any = SimpleNamespace(name="tiny")

    def submit(queue: RequestQueue, client: str) -> Job | ApiError:
        job = job_of(client, model)
        try:
            queue.submit(job, 1000)
        except ApiError as error:
            return error
        assert job.position > 0
        return job

    async def run() -> list[Job | ApiError]:
        settings = ServerSettings.model_validate({"limits": {"queue": limit}})
        queue = RequestQueue(["tiny"], settings, Metrics(), lambda *_: Idle())
        jobs = [submit(queue, client) for client in clients]
        ended = {job for job in jobs if isinstance(job, Job) and job.ended.is_set()}
        assert queue.waiting == {
            "tiny": sum(isinstance(job, Job) and job not in ended for job in jobs)
        }
        for job in set(jobs) - ended:
            if isinstance(job, Job):
                queue.stop(job, CANCELLED)
        return jobs

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("clients", "outcome"),
    [
        ("aaaa", "wwwr"),  # no other client waits, so one client has the whole queue
        ("aaab", "wwhw"),  # the newest request of the client with most is removed
        ("aaabb", "wwhwr"),  # the share of two clients is one each, so b cannot remove another
        ("aabc", "whww"),
        ("abcd", "wwwr"),  # every client has one, so those that came first stay
    ],
)
def test_a_full_queue_is_shared_among_clients(clients: str, outcome: str) -> None:
    """w: it waits, h: it was removed from the queue, r: it was rejected."""
    for job, what in zip(submitted(clients, 3), outcome, strict=True):
        if what == "r":
            error: ApiError | None = job if isinstance(job, ApiError) else None
        else:
            assert isinstance(job, Job)
            error = job.error
        assert error
        if what == "w":
            assert error is CANCELLED  # which the test does at its end
        else:
            assert (error.status, error.detail.code) == (429, "queue_full")
            assert int(error.headers["Retry-After"]) >= 1


def test_the_spelling_of_a_folder_does_not_change_the_name(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(forked_bundle.parent)
    folder, name = forked_bundle.name, intaglio.Bundle.open(forked_bundle).name
    for argument in (folder, f"{folder}/", f"./{folder}", f"./{folder}/", f"{forked_bundle}//"):
        assert open_model(argument).name == name
    assert open_model(f"other=./{folder}/").name == "other"
    with pytest.raises(UsageError, match=f"NAME={folder}"):
        open_model(f"={folder}/")


@pytest.mark.parametrize("prepack", [True, False])
def test_settings_reach_the_pipeline(forked_bundle: Path, prepack: bool) -> None:
    models = Models([str(forked_bundle)], ServerSettings(device="cpu", threads=1, prepack=prepack))
    (model,) = models
    backend = models.acquire(model).backend
    assert "cpu, 1 thread" in backend
    assert ("prepacked" in backend) == prepack


def test_no_more_models_than_necessary_are_evicted(forked_bundle: Path) -> None:
    arguments = [f"{name}={forked_bundle}" for name in "abc"]
    models = Models(arguments, ServerSettings(memory_bytes=2 * open_model(arguments[0]).bytes))
    a, b, c = models
    models.reserve(b)
    models.reserve(a)
    b.last_used, a.last_used = 1.0, 2.0
    waiter = threading.Thread(target=models.reserve, args=[c])
    waiter.start()
    wait_until(lambda: b.wanted)
    assert not a.wanted
    models.release(a)  # before the model that was asked to make room
    waiter.join()
    assert c.in_use
    assert not any(model.wanted for model in models)


def test_a_closing_server_loads_no_model(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    arguments = [f"{name}={forked_bundle}" for name in "ab"]
    room = open_model(arguments[0]).bytes
    open_pipeline = Pipeline.open

    def recorded(*args: Any, **keywords: Any) -> intaglio.Pipeline:
        opened.append("one")
        return open_pipeline(*args, **keywords)

    monkeypatch.setattr(Pipeline, "open", recorded)
    with serving(*arguments, memory_bytes=room, limits={"steps": LONG}) as server:
        runs = server.post_job(model="a", steps=LONG)
        wait_until(lambda: server.job(runs["id"])["status"] == "running")
        server.post_job(model="b", steps=1)
        wait_until(lambda: server.services.models.get("a").wanted)
    assert opened == ["one"]
