"""The order of requests, full queues, API keys, metrics, and models that share memory."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import intaglio
from intaglio import _core
from intaglio.serve.engine.fair_queue import FairQueue
from intaglio.serve.engine.worker import OVERTAKEN_LIMIT
from intaglio.serve.models.embeddings import EmbeddingCache, encoder_hash
from intaglio.serve.models.registry import open_model
from tests.fake_bundle import make_bundle
from tests.serve.conftest import LONG, PROMPT, Running, serving, wait_until

KEYS = "# for tests\nfirst-key\n\nsecond-key\n"


@pytest.fixture(scope="module")
def keyed(forked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with two keys and room for three waiting requests."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEYS)
    limits = {"steps": LONG, "queue": 3}
    with serving(forked_bundle, api_keys=keys, max_batch=1, limits=limits) as running:
        yield running


def post(server: Running, key: str, **fields: Any) -> httpx2.Response:
    return server.client.post(
        "/v1/jobs",
        json={"prompt": PROMPT, **fields},
        headers={"Authorization": f"Bearer {key}"},
    )


def of_key(server: Running, method: str, job: dict[str, Any], key: str) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return server.client.request(method, f"/v1/jobs/{job['id']}", headers=headers)


class Waiting:
    """The part of a job that the queue uses."""

    def __init__(self, client: str) -> None:
        self.client = client


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_clients_take_turns_each_in_its_own_order(clients: list[str]) -> None:
    queue, jobs = FairQueue(), [Waiting(client) for client in clients]
    for job in jobs:
        queue.add(job)  # type: ignore[arg-type]
    announced: list[Any] = queue.order()
    taken: list[Waiting] = []
    while order := queue.order():
        assert order == announced[len(taken) :]  # as announced
        assert queue.take(order[0])
        taken.append(order[0])  # type: ignore[arg-type]
    assert sorted(map(id, taken)) == sorted(map(id, jobs))
    served: dict[str, int] = defaultdict(int)
    for job in taken:
        served[job.client] += 1
        left = {c for c in clients if served[c] < clients.count(c)}
        assert all(served[job.client] <= served[c] + 1 for c in left), (
            "another client waits for two requests"
        )
    for client in set(clients):
        own = [job for job in jobs if job.client == client]
        assert [job for job in taken if job.client == client] == own


@contextmanager
def full(server: Running) -> Iterator[None]:
    """Fill the batch of one with an endless run, so that other requests wait."""
    job = post(server, "first-key", steps=LONG).json()
    try:
        wait_until(lambda: of_key(server, "GET", job, "first-key").json()["status"] == "running")
        yield
    finally:
        of_key(server, "DELETE", job, "first-key").raise_for_status()


def test_a_client_with_one_request_overtakes_one_with_many(keyed: Running) -> None:
    with full(keyed):
        of_first = [post(keyed, "first-key", steps=1).json() for _ in range(2)]
        of_second = post(keyed, "second-key", steps=1).json()
        positions = [of_key(keyed, "GET", job, "first-key").json()["position"] for job in of_first]
    assert positions == [1, 3]
    assert of_second["position"] == 2
    wait_until(lambda: keyed.metric("queue_depth") == 0)


def test_a_full_queue_is_429_with_retry_after(keyed: Running) -> None:
    before = keyed.metric("rejections_total", code="queue_full")
    with full(keyed):
        answers = [post(keyed, "first-key", steps=1) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [202] * 3 + [429] * 2
        for refused in answers[3:]:
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
        assert keyed.metric("rejections_total", code="queue_full") == before + 2
    wait_until(lambda: keyed.metric("queue_depth") == 0)
    assert post(keyed, "first-key", steps=1).status_code == 202


def test_a_request_that_does_not_fit_is_overtaken_a_few_times_only(forked_bundle: Path) -> None:
    """A request of another size waits while an endless run keeps the batch in use."""
    with serving(forked_bundle, max_batch=2, limits={"steps": LONG}) as server:
        endless = server.post_job(steps=LONG)
        wait_until(lambda: server.job(endless["id"])["status"] == "running")
        other = server.post_job(steps=1, size="24x24")
        fitting = [server.post_job(steps=1) for _ in range(OVERTAKEN_LIMIT + 3)]
        for job in fitting[:OVERTAKEN_LIMIT]:
            assert server.events(job["id"])[-1][0] == "done"
        left = [server.job(job["id"])["position"] for job in [other, *fitting[OVERTAKEN_LIMIT:]]]
        assert left == [1, 2, 3, 4]
        assert server.job(endless["id"])["status"] == "running"
        server.client.delete(f"/v1/jobs/{endless['id']}")
        for job in [other, *fitting]:
            assert server.events(job["id"])[-1][0] == "done"


def test_requests_share_a_batch_and_get_the_images_of_single_runs(
    forked_bundle: Path, pipeline: intaglio.Pipeline
) -> None:
    """Requests with different steps, guidance and seeds join a batch with an endless run."""
    fields: list[dict[str, Any]] = [
        {"seed": 1, "steps": 9},
        {"seed": 2, "steps": 5, "cfg_scale": 1, "dg_scale": 0},
        {"seed": 3, "steps": 7, "dg_window": [0, 0.5]},
    ]
    with serving(forked_bundle, limits={"steps": LONG}) as server:
        endless = server.post_job(steps=LONG)
        server.events(endless["id"], until="step")
        jobs = [server.post_job(**one) for one in fields]
        for job, one in zip(jobs, fields, strict=True):
            assert server.events(job["id"])[-1][0] == "done"
            (url,) = server.job(job["id"])["images"]
            drawn = Image.open(io.BytesIO(server.client.get(url).content))
            keywords = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
            expected = pipeline.generate(PROMPT, seeds=keywords.pop("seed"), **keywords)
            # Rows in a batch may round differently, by one level of 255.
            difference = np.asarray(drawn, int) - np.asarray(expected.images[0], int)
            assert abs(difference).max() <= 1
        assert server.client.delete(f"/v1/jobs/{endless['id']}").json()["status"] == "cancelled"
        evaluations = server.metric("batch_step_seconds_count")
        assert evaluations == server.metric("steps_total") - 9 - 5 - 7


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer first-ke", "Basic first-key"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/images/generations"), ("POST", "/v1/images/edits"), ("POST", "/v1/jobs"),
     ("GET", "/v1/jobs/any"), ("DELETE", "/v1/jobs/any"), ("GET", "/v1/jobs/any/events"),
     ("GET", "/v1/models"), ("HEAD", "/v1/models")],
)  # fmt: skip
def test_every_route_requires_a_key(
    keyed: Running, method: str, path: str, header: str | None
) -> None:
    headers = {"Authorization": header} if header else {}
    answer = keyed.client.request(method, path, json={"prompt": PROMPT}, headers=headers)
    assert answer.status_code == 401
    if method != "HEAD":  # its answers have no body
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_comments_and_empty_lines_are_not_keys(keyed: Running) -> None:
    for key in ("# for tests", "#", "first-key second-key"):
        assert post(keyed, key).status_code == 401


def test_a_key_may_have_any_characters(forked_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("clé\nclà\n", "utf-8")
    with serving(forked_bundle, api_keys=keys) as server:
        for key, status in (("clé", 200), ("clà", 200), ("clè", 401), ("cl", 401)):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert server.client.get("/v1/models", headers=headers).status_code == status


def test_only_its_own_key_finds_a_job(keyed: Running) -> None:
    job = post(keyed, "second-key", steps=1).json()
    for method in ("GET", "DELETE"):
        assert of_key(keyed, method, job, "first-key").status_code == 404
    assert of_key(keyed, "GET", job, "second-key").status_code == 200


def test_probes_need_no_key(keyed: Running) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert keyed.client.get(path).status_code == 200


def test_cached_embeddings_stay_within_their_limit(forked_bundle: Path) -> None:
    """The cache has room for two texts: the empty negative prompt, and one prompt."""
    one = intaglio.Pipeline.open(forked_bundle).embed(PROMPT)
    parts = (one.prompt_embeds, one.prompt_attention_mask, one.pooled_prompt_embeds)
    room = 2 * sum(part.nbytes for part in parts if part is not None)
    with serving(forked_bundle, embedding_bytes=room) as server:
        for prompt in ("a", "a", "b", "a"):
            body = {"prompt": prompt, "steps": 1}
            server.client.post("/v1/images/generations", json=body).raise_for_status()
        assert server.metric("embedding_cache_total", result="miss") == 1 + 3
        assert server.metric("embedding_cache_total", result="hit") == 1 + 3
        assert server.services.cache.nbytes == room
    with serving(forked_bundle, embedding_bytes=0) as server:
        body = {"prompt": PROMPT, "steps": 1}
        server.client.post("/v1/images/generations", json=body).raise_for_status()
        assert server.services.cache.nbytes == 0


def test_only_models_with_the_same_text_encoders_share_embeddings(
    forked_bundle: Path, dual_bundle: Path, tmp_path: Path
) -> None:
    tables = forked_bundle / "tokenizer" / "tables.json"
    other = make_bundle(tmp_path / "other", "text", "text_mask", tokenizer=tables)
    cache = EmbeddingCache(2**20)
    for bundle, misses in ((forked_bundle, 2), (dual_bundle, 2), (other, 4)):
        pipeline = intaglio.Pipeline.open(bundle)
        got, _ = cache.embed(pipeline, encoder_hash(pipeline.bundle), PROMPT, "")
        expected = pipeline.embed(PROMPT)
        np.testing.assert_array_equal(got.prompt_embeds, expected.prompt_embeds)
        assert cache.misses == misses
    finetuned = shutil.copytree(forked_bundle, tmp_path / "finetuned")
    manifest = json.loads((finetuned / "bundle.json").read_text("utf-8"))
    weights = finetuned / "text_encoder" / "weights.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest["files"]["text_encoder/weights.data"]["sha256"] = digest
    (finetuned / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    one, another = (intaglio.Bundle.open(path) for path in (forked_bundle, finetuned))
    assert encoder_hash(one) != encoder_hash(another)


def test_the_metrics_of_requests(forked_bundle: Path) -> None:
    with serving(f"tiny={forked_bundle}", max_batch=2) as server:
        body = {"prompt": PROMPT, "n": 2, "steps": 4, "dg_window": [0, 0.5]}
        for _ in range(2):
            server.client.post("/v1/images/generations", json=body).raise_for_status()
        server.client.post("/v1/images/generations", json={**body, "cfg_scale": 1})
        skipping = {"steps": 6, "skip_interval": 2, "skip_tolerance": 1000, "dg_scale": 0}
        plain = {"prompt": PROMPT, **skipping}
        server.client.post("/v1/images/generations", json=plain).raise_for_status()
        count = server.metric
        assert count("jobs_total", model="tiny", status="done") == 4
        assert count("images_total") == 7
        assert count("steps_total") == 12 + 6
        assert count("evaluations_total") == 12 + 4
        assert count("branch_steps_total", branch="conditional") == 12 + 4
        assert count("branch_steps_total", branch="unconditional") == 8 + 4
        assert count("branch_steps_total", branch="degraded") == 6
        # Two images, with D_0 and D_c before the fork and also D_m after it.
        assert count("rows_total", blocks="base") == 2 * (2 * 4 * 2 + 4) + 4 * 2
        assert count("rows_total", blocks="forked") == 2 * (2 * (4 * 2 + 2) + 4 + 2) + 4 * 2
        # The prompt and the empty negative prompt are each encoded once.
        assert count("embedding_cache_total", result="miss") == 2
        assert count("embedding_cache_total", result="hit") == 6
        assert count("queue_wait_seconds_count") == 4
        assert count("queue_depth") == 0
        assert count("loaded_bytes") > 0
        for stage in ("text", "denoise", "network", "vae", "png"):
            assert count("stage_seconds_count", stage=stage) == 4
            assert count("stage_seconds_sum", stage=stage) > 0


def test_models_are_loaded_on_first_use_and_evicted(forked_bundle: Path, dual_bundle: Path) -> None:
    bundles = {"a": forked_bundle, "b": dual_bundle, "c": forked_bundle}
    arguments = [f"{name}={folder}" for name, folder in bundles.items()]
    room = sum(open_model(argument).bytes for argument in arguments[:2])
    with serving(*arguments, memory_bytes=room) as server:

        def loaded() -> set[str]:
            return {name for name in bundles if server.metric("loaded_bytes", model=name)}

        def draw(model: str) -> None:
            body = {"prompt": PROMPT, "steps": 1, "model": model}
            server.client.post("/v1/images/generations", json=body).raise_for_status()
            wait_until(lambda: not any(model.in_use for model in server.services.models))

        assert loaded() == set()
        draw("a")
        assert loaded() == {"a"}
        draw("b")
        draw("a")
        assert loaded() == {"a", "b"}
        draw("c")  # b was used before a
        assert loaded() == {"a", "c"}


def test_models_that_do_not_fit_together_take_turns(forked_bundle: Path, dual_bundle: Path) -> None:
    arguments = [f"a={forked_bundle}", f"b={dual_bundle}"]
    room = max(open_model(argument).bytes for argument in arguments)
    with serving(*arguments, memory_bytes=room) as server:
        jobs = [server.post_job(model=model, steps=3) for model in "ababab"]
        threads = [threading.Thread(target=server.events, args=[job["id"]]) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {server.job(job["id"])["status"] for job in jobs} == {"done"}


def test_a_model_that_does_not_fit_at_once_runs_part_by_part(forked_bundle: Path) -> None:
    plan = _core.plan_memory(_core.Bundle.open(forked_bundle), {"batch": 8}, prepack=True)
    largest = max(phase.weights + phase.activations for phase in plan.phases)
    body = {"prompt": PROMPT, "steps": 2, "seed": 5, "response_format": "b64_json"}
    answers = []
    for room in (None, largest):
        with serving(str(forked_bundle), memory_bytes=room) as server:
            answer = server.client.post("/v1/images/generations", json=body)
            answers.append(answer.raise_for_status().json()["data"][0]["b64_json"])
            jobs = [server.post_job(steps=2) for _ in range(3)]
            events = [server.events(job["id"]) for job in jobs]
            assert {server.job(job["id"])["status"] for job in jobs} == {"done"}
            if room:
                assert not any("preview" in str(event) for part in events for event in part)
            side = _core.Bundle.open(forked_bundle).latent.max_height
            large = body | {"n": 8, "size": f"{side}x{side}"}
            if room:
                refused = server.client.post("/v1/images/generations", json=large)
                assert refused.status_code == 503
                assert "fits" in refused.json()["error"]["message"]
    assert answers[0] == answers[1]
