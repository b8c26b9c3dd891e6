"""Failing disks and models, and a server that is stopped or killed."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from intaglio.serve.engine.images import ImageStore
from tests.serve.conftest import LONG, PROMPT, read_metric, serving, wait_until

# Steps of a run that finishes by itself, but not before a slow machine has asked for its status.
FINITE = 200
CONFIG = f"""
image_seconds = 600
grace = {{grace}}
images = "{{images}}"
[limits]
steps = {LONG}
"""


class Process:
    """The command `intaglio serve` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self.client = httpx2.Client(base_url=url, timeout=120)

    def post_job(self, **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/jobs", json={"prompt": PROMPT, **fields})
        assert answer.status_code == 202, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def draw(self, **fields: Any) -> httpx2.Response:
        """Return the answer of OpenAI's endpoint."""
        return self.client.post("/v1/images/generations", json={"prompt": PROMPT, **fields})

    def status(self, job: dict[str, Any]) -> str:
        return str(self.client.get(f"/v1/jobs/{job['id']}").json()["status"])

    def metric(self, name: str) -> float:
        return read_metric(self.client, name)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one event. Every finished line has to be JSON."""
        whole, _, _ = self.log.read_text().rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if line["event"] == event]


@contextmanager
def command(
    bundle: Path, folder: Path, *flags: str, grace: float = 30, file_size: int | None = None
) -> Iterator[Process]:
    """Run `intaglio serve` with images in `folder`, and a limit on the size of its files."""
    config, log = folder / "serve.toml", folder / "log"
    config.write_text(CONFIG.format(grace=grace, images=folder / "images"))

    def limit() -> None:
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    arguments = ["serve", str(bundle), "--config", str(config), "--port", "0", "--threads", "1"]
    arguments += flags
    with subprocess.Popen(
        [sys.executable, "-m", "intaglio", *arguments],
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
        preexec_fn=limit,
    ) as process:
        assert process.stdout
        try:
            address = process.stdout.readline()
            assert address.startswith("intaglio: serving on http://127.0.0.1:"), log.read_text()
            yield Process(process, address.split()[-1], log)
        finally:
            process.kill()


def test_a_stopping_server_finishes_running_requests(forked_bundle: Path, tmp_path: Path) -> None:
    with command(forked_bundle, tmp_path, grace=600) as server:
        # The sizes differ, so the requests cannot share a batch.
        running = server.post_job(steps=FINITE, size="64x64")
        waiting = [server.post_job(steps=2, size=f"{side}x{side}") for side in (32, 40)]
        wait_until(lambda: server.status(running) == "running")
        server.process.terminate()
        wait_until(lambda: server.client.get("/readyz").status_code == 503)
        assert [server.status(job) for job in waiting] == ["failed", "failed"]
        refused = server.client.post("/v1/jobs", json={"prompt": PROMPT})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert server.client.get("/healthz").status_code == 200
        server.client.close()
        assert server.process.wait(600) == 0
        ends = {line["id"]: line["status"] for line in server.lines("job")}
        assert ends[running["id"]] == "done"
        assert len(list((tmp_path / "images").glob("*.png"))) == 1


def test_ctrl_c_stops_the_server(forked_bundle: Path, tmp_path: Path) -> None:
    with command(forked_bundle, tmp_path, grace=600) as server:
        job = server.post_job(steps=FINITE // 2, size="64x64")
        wait_until(lambda: server.status(job) == "running")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(600) == 0
        assert [line["status"] for line in server.lines("job")] == ["done"]


def test_a_run_that_exceeds_the_grace_period_fails(forked_bundle: Path, tmp_path: Path) -> None:
    with command(forked_bundle, tmp_path, grace=0.5) as server:
        job = server.post_job(steps=LONG)
        wait_until(lambda: server.status(job) == "running")
        answers: list[httpx2.Response] = []
        body = {"prompt": PROMPT, "steps": LONG}
        thread = threading.Thread(
            target=lambda: answers.append(
                httpx2.post(f"{server.url}/v1/images/generations", json=body, timeout=240)
            )
        )
        thread.start()
        wait_until(lambda: server.metric("running") + server.metric("queue_depth") == 2)
        server.process.terminate()
        thread.join()
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["code"] == "stopping"
        assert server.process.wait(240) == 0
        (line,) = [line for line in server.lines("job") if line["id"] == job["id"]]
        assert (line["status"], line["error"]) == ("failed", "stopping")


def test_after_a_kill_images_are_there_and_jobs_are_not(
    forked_bundle: Path, tmp_path: Path
) -> None:
    with command(forked_bundle, tmp_path) as server:
        done = server.post_job(steps=1)
        wait_until(lambda: server.status(done) == "done")
        (url,) = server.client.get(f"/v1/jobs/{done['id']}").json()["images"]
        png = server.client.get(url).content
        accepted = [server.post_job(steps=LONG) for _ in range(4)]
        server.process.send_signal(signal.SIGKILL)
        assert server.process.wait(240) == -signal.SIGKILL
    parts = [tmp_path / "images" / f"{digit * 32}.part" for digit in "01"]
    for part in parts:
        part.write_bytes(b"of a write that was killed")
    os.utime(parts[0], (0, 0))
    os.utime(parts[1], (2**32, 2**32))  # newer than the test takes
    with command(forked_bundle, tmp_path) as server:
        assert server.client.get(httpx2.URL(url).path).content == png
        wait_until(lambda: not parts[0].exists())
        assert parts[1].exists(), "another server may be writing it"
        for lost in [done, *accepted]:
            for path in (f"/v1/jobs/{lost['id']}", f"/v1/jobs/{lost['id']}/events"):
                answer = server.client.get(path)
                assert answer.status_code == 404
                assert answer.json()["error"]["code"] == "job_not_found"
                assert "restarted and has forgotten" in answer.json()["error"]["message"]
        job = server.post_job(steps=1)
        wait_until(lambda: server.status(job) == "done")


def test_a_file_that_disappears_is_no_error(tmp_path: Path) -> None:
    """A dangling link is listed but has no status."""
    gone = tmp_path / f"{'0' * 32}.png"
    gone.symlink_to("nothing")
    store = ImageStore(tmp_path, 600)
    name = store.write(b"an image")
    assert store.find(gone.stem) is None
    store.expire()
    assert [path.stem for path in tmp_path.iterdir()] == [name]


def test_an_image_that_cannot_be_stored_is_a_clear_error(
    forked_bundle: Path, tmp_path: Path
) -> None:
    """The kernel rejects large files, as it rejects any file on a full disk."""
    with command(forked_bundle, tmp_path, file_size=1000) as server:
        answer = server.draw(steps=1)
        assert answer.status_code == 507
        assert answer.json()["error"]["code"] == "image_not_stored"
        assert "b64_json" in answer.json()["error"]["message"]
        job = server.post_job(steps=1)
        wait_until(lambda: server.status(job) == "failed")
        assert not list((tmp_path / "images").iterdir())
        assert server.draw(steps=1, response_format="b64_json").status_code == 200


def test_the_log_has_neither_prompts_nor_names_of_images(
    forked_bundle: Path, tmp_path: Path
) -> None:
    """Prompts are private, and whoever knows the name of an image can fetch it."""
    with command(forked_bundle, tmp_path) as server:
        long = "boot " * 200 + "a secret boot"  # a note is about its end
        texts = {"prompt": long, "negative_prompt": "another", "transport_from": "a third"}
        url = httpx2.URL(server.draw(**texts, steps=1).json()["data"][0]["url"]).path
        assert len(server.lines("job")) == 1
        assert server.client.get(url).status_code == 200
        assert server.client.get(url.removesuffix(".png")).status_code == 404
        # A line is written after its answer was sent, so the client may see the answer earlier.
        wait_until(lambda: len(server.lines("request")) == 3)
        paths = {line["path"] for line in server.lines("request")}
        assert paths == {"/v1/images/generations", "/v1/images/{name}.png", None}
        for word in ("secret boot", "another", "a third", "its end is ignored", Path(url).stem):
            assert word not in server.log.read_text()


def test_the_log_has_prompts_when_asked(forked_bundle: Path, tmp_path: Path) -> None:
    with command(forked_bundle, tmp_path, "--log-prompts") as server:
        prompt = "a secret boot" * 100
        server.draw(prompt=prompt, negative_prompt="another", steps=1)
        (line,) = server.lines("job")
        assert (line["prompt"], line["negative_prompt"]) == (prompt, "another")
        assert "its end is ignored" in line["notes"][0]


def test_an_unexpected_error_is_answered_and_logged(
    forked_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def bug() -> None:
        raise RuntimeError("unexpected")

    caplog.set_level("INFO", "intaglio.serve")
    with serving(forked_bundle) as server:
        server.app.add_api_route("/bug", bug)
        answer = server.client.get("/bug", headers={"Connection": "close"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert server.metric("rejections_total") == 0
    fields = [vars(record).get("fields", {}) for record in caplog.records]
    assert [line["status"] for line in fields if line.get("path") == "/bug"] == [500]


@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_requests(forked_bundle: Path, tmp_path: Path) -> None:
    """Half of them are jobs with readers. The first round ends more jobs than the server keeps."""
    with command(forked_bundle, tmp_path) as server:
        process = psutil.Process(server.process.pid)
        resident: list[int] = []

        def ask(number: int) -> bool:
            if number % 2:
                return server.draw(steps=1, size="64x64").status_code == 200
            job = server.post_job(steps=1, size="64x64")
            return "event: done" in server.client.get(f"/v1/jobs/{job['id']}/events").text

        for requests in (600, 400):
            with ThreadPoolExecutor(4) as pool:
                assert all(pool.map(ask, range(requests)))
            resident.append(process.memory_info().rss)
        # Leaking an image, a tensor or the events of each request would exceed this.
        assert resident[1] - resident[0] < 400 * 8_000, resident


@pytest.fixture(scope="module")
def broken_bundle(forked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with all weights of its transformer set to NaN."""
    folder = tmp_path_factory.mktemp("broken") / "bundle"
    shutil.copytree(forked_bundle, folder)
    weights = folder / "transformer" / "weights.data"
    values = np.fromfile(weights, np.float32)
    values[:] = np.nan
    values.tofile(weights)
    manifest = json.loads((folder / "bundle.json").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest["files"]["transformer/weights.data"]["sha256"] = digest
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_a_model_that_predicts_nan_is_a_clear_error(
    forked_bundle: Path, broken_bundle: Path
) -> None:
    with serving(f"good={forked_bundle}", f"broken={broken_bundle}") as server:
        for model, status in (("broken", 500), ("good", 200), ("broken", 500)):
            body = {"model": model, "prompt": PROMPT, "steps": 3}
            answer = server.client.post("/v1/images/generations", json=body)
            assert answer.status_code == status, answer.text
        assert "became NaN or infinite" in answer.json()["error"]["message"]
        assert server.metric("jobs_total", model="broken", status="failed") == 2
        assert server.metric("rejections_total") == 0


def test_a_bundle_that_vanished_is_a_clear_error(forked_bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "bundle"
    shutil.copytree(forked_bundle, moved)
    with serving(f"tiny={moved}") as server:
        shutil.rmtree(moved)
        answer = server.client.post("/v1/images/generations", json={"prompt": PROMPT})
        assert answer.status_code == 500
        assert f"there is no folder {moved}" in answer.json()["error"]["message"]
