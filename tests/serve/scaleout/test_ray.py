"""The server on a real Ray cluster of this machine, with replicas that start and are killed."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import psutil
import pytest
import ray
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.serve.schema import ServeDeploySchema

import intaglio
from intaglio.serve.ray_app import Arguments, app
from tests.serve.conftest import LONG, PROMPT, fetch, wait_until

pytestmark = pytest.mark.alone
ROOT = Path(__file__).parents[3]
CONFIG = """
threads = 1
max_batch = 4
[limits]
steps = 10_000
deadline = 300
"""
# Settings of Ray, so that a second replica starts within seconds and stays.
AUTOSCALING = {
    "min_replicas": 1, "max_replicas": 2, "upscale_delay_s": 1, "look_back_period_s": 2,
    "metrics_interval_s": 1,
}  # fmt: skip
FEW = 500  # steps of a run that is still running when a replica is killed
# Models that no replica has loaded yet, each for one attempt.
FRESH = [f"fresh-{number}" for number in range(7)]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The folder of the cluster's sockets and logs, with the short path that sockets require."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def url(
    forked_bundle: Path, dual_bundle: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a cluster that runs the application with several models on one replica."""
    config = tmp_path_factory.mktemp("ray") / "serve.toml"
    config.write_text(CONFIG)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        _temp_dir=str(folder),
        num_cpus=2, include_dashboard=False, log_to_driver=False,
        object_store_memory=128 * 1024 * 1024, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        bundles = [f"tiny={forked_bundle}", *(f"{name}={dual_bundle}" for name in FRESH)]
        serve.run(app(Arguments(bundles=bundles, config=config, autoscaling=AUTOSCALING)))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=240)


def draw(
    client: openai.OpenAI, seed: int, model: str = "tiny", **fields: Any
) -> np.ndarray[Any, Any]:
    answer = client.images.generate(
        model=model, prompt=PROMPT, response_format="b64_json", extra_body={"seed": seed, **fields}
    )
    assert answer.data
    assert answer.data[0].b64_json
    return pixels(base64.b64decode(answer.data[0].b64_json))


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def assert_drawn(
    pipeline: intaglio.Pipeline, image: np.ndarray[Any, Any], seed: int, steps: int
) -> None:
    """Compare with generate(). In a batch, a value may round to the next level."""
    expected = np.asarray(pipeline.generate(PROMPT, seeds=seed, steps=steps).images[0]).astype(int)
    assert np.abs(image - expected).max() <= 1


def metric(url: str, name: str) -> float:
    page = text_string_to_metric_families(fetch(f"{url}/metrics").text)
    samples = [sample for family in page for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == f"intaglio_{name}")


def post_job(url: str, **fields: Any) -> str:
    body = {"model": "tiny", "prompt": PROMPT, **fields}
    answer = httpx2.post(f"{url}/v1/jobs", json=body, timeout=120)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def job(url: str, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = fetch(f"{url}/v1/jobs/{job_id}").json()
    return found


def running_replicas() -> int:
    states = serve.status().applications["default"].deployments["Replica"].replica_states
    return states.get("RUNNING", 0)


def processes(deployment: str) -> list[psutil.Process]:
    """Return the processes of a deployment's replicas, by the titles that Ray gives them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if f"ServeReplica:default:{deployment}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def grown(url: str) -> None:
    """Make Ray start a second replica, with more requests than one replica should have."""
    assert running_replicas() == 1
    jobs = [post_job(url, steps=2000) for _ in range(16)]
    wait_until(lambda: running_replicas() == 2)
    for job_id in jobs:
        httpx2.delete(f"{url}/v1/jobs/{job_id}", timeout=120)


def test_openais_client_gets_the_image_of_generate(
    client: openai.OpenAI, pipeline: intaglio.Pipeline
) -> None:
    assert_drawn(pipeline, draw(client, 3, steps=5), 3, 5)
    assert {model.id for model in client.models.list().data} == {"tiny", *FRESH}
    with pytest.raises(openai.BadRequestError) as refused:
        draw(client, 3, steps=20_000)
    assert refused.value.param == "steps"


def test_a_replica_gets_the_pictures_of_an_edit(
    client: openai.OpenAI, pipeline: intaglio.Pipeline
) -> None:
    picture = Image.linear_gradient("L").convert("RGB").resize((128, 128))
    mask = Image.new("RGBA", picture.size)
    mask.paste((0, 0, 0, 255), (0, 0, 128, 64))
    files = [io.BytesIO(), io.BytesIO()]
    for file, drawn in zip(files, (picture, mask), strict=True):
        drawn.save(file, "PNG")
    answer = client.images.edit(
        model="tiny", prompt=PROMPT, image=files[0].getvalue(), mask=files[1].getvalue(),
        response_format="b64_json", extra_body={"seed": 2, "steps": 3, "strength": 0.7},
    )  # fmt: skip
    assert answer.data
    assert answer.data[0].b64_json
    white = np.repeat(np.arange(128)[:, None] >= 64, 128, axis=1).astype(np.uint8) * 255
    expected = pipeline.generate(
        PROMPT, image=picture, mask=white, seeds=2, steps=3, strength=0.7
    ).images[0]
    found = pixels(base64.b64decode(answer.data[0].b64_json))
    assert np.abs(found - np.asarray(expected).astype(int)).max() <= 1


def test_a_job_is_followed(url: str, pipeline: intaglio.Pipeline) -> None:
    job_id = post_job(url, seed=5, steps=6)
    with httpx2.stream("GET", f"{url}/v1/jobs/{job_id}/events", timeout=120) as stream:
        names = re.findall(r"^event: (\w+)$", "".join(stream.iter_text()), re.MULTILINE)
    assert names.count("step") == 6
    assert names[-1] == "done"
    done = job(url, job_id)
    assert {"queued", "text", "denoise", "network", "vae"} <= done["timings"].keys()
    image = fetch(done["images"][0])
    assert_drawn(pipeline, pixels(image.content), 5, 6)


def test_a_job_has_previews_and_is_cancelled_within_a_step(url: str) -> None:
    job_id = post_job(url, steps=LONG)
    with httpx2.stream("GET", f"{url}/v1/jobs/{job_id}/events", timeout=240) as stream:
        assert "event: preview" in stream.iter_lines()
    assert httpx2.delete(f"{url}/v1/jobs/{job_id}", timeout=120).json()["status"] == "cancelled"
    assert job(url, job_id)["step"] < LONG
    assert metric(url, "queue_depth") == metric(url, "running") == 0


@pytest.mark.usefixtures("grown")
def test_a_killed_replica_loses_no_request(
    url: str, client: openai.OpenAI, pipeline: intaglio.Pipeline
) -> None:
    lost = metric(url, "lost_attempts_total")
    with ThreadPoolExecutor(6) as pool:
        answers: list[Future[np.ndarray[Any, Any]]] = [
            pool.submit(draw, client, seed, steps=FEW) for seed in range(6)
        ]
        jobs = {seed: post_job(url, seed=seed, steps=FEW) for seed in range(6, 10)}
        wait_until(lambda: metric(url, "running") >= 6)
        kill(processes("Replica")[0])
        images = {seed: answer.result() for seed, answer in enumerate(answers)}
    for seed, job_id in jobs.items():
        wait_until(lambda job_id=job_id: job(url, job_id)["status"] not in {"queued", "running"})
        ended = job(url, job_id)
        assert ended["status"] == "done", ended
        images[seed] = pixels(fetch(ended["images"][0]).content)
    assert metric(url, "lost_attempts_total") > lost, "the killed replica had no request"
    for seed, image in images.items():
        assert_drawn(pipeline, image, seed, FEW)


@pytest.mark.usefixtures("grown")
def test_a_request_goes_to_the_replica_with_its_model(client: openai.OpenAI, folder: Path) -> None:
    """Ray's router learns which replica has a model at some time after the first request.

    Earlier requests may go to another replica, which then loads the model too. So each attempt uses
    a model that is not loaded yet, and waits longer than the previous one. Nearly all requests have
    to go to one replica; Ray uses another one if a replica does not report its load at once.
    """
    runs = 30

    def drawn(model: str) -> Counter[str]:
        """Count the runs of the model in the log of each process. The front logs all runs."""
        return Counter(
            path.name
            for path in folder.glob("session_latest/logs/worker-*.err")
            for line in path.read_text().splitlines(keepends=True)
            if '"event": "job"' in line and line.endswith("\n")  # a finished line
            if json.loads(line)["model"] == model
        )

    for number, model in enumerate(FRESH):
        draw(client, 0, model=model, steps=1)
        time.sleep(2**number)
        for seed in range(runs):
            draw(client, seed, model=model, steps=1)
        wait_until(lambda m=model: drawn(m).total() == 2 * (runs + 1))
        _, replica, *_ = sorted(drawn(model).values(), reverse=True)
        if replica >= 0.9 * runs:
            return
    pytest.fail("requests go to any replica")


def test_a_killed_front_comes_back(
    url: str, client: openai.OpenAI, pipeline: intaglio.Pipeline
) -> None:
    (front,) = processes("Front")
    kill(front)

    def answers() -> bool:
        with suppress(httpx2.HTTPError):  # a connection to the killed process may never be answered
            return httpx2.get(f"{url}/readyz", timeout=5).status_code == 200
        return False

    wait_until(answers)
    assert_drawn(pipeline, draw(client, 4, steps=5), 4, 5)


def test_the_serve_file_is_valid() -> None:
    described = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text())
    (application,) = ServeDeploySchema.model_validate(described).applications
    assert application.import_path == f"{app.__module__}:{app.__name__}"
    Arguments.model_validate(application.args)
