"""Jobs from the queue to their end, their events, cancelling and deadlines."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import intaglio
from intaglio.serve.engine.job import Job
from tests.serve.conftest import LONG, PROMPT, Running, serving, wait_until


@pytest.mark.parametrize("fields", [{}, {"scheduler": "unipc", "transport_from": "a light boot"}])
def test_a_job_from_queue_to_done(
    server: Running, pipeline: intaglio.Pipeline, fields: dict[str, Any]
) -> None:
    made = server.post_job(**fields, seed=5, steps=6)
    assert made["status"] == "queued"
    assert made["position"] == 1
    assert made["request"]["seed"] == 5
    assert made["request"]["cfg_scale"] == pipeline.bundle.defaults.guidance.cfg_scale.first
    server.events(made["id"])
    job = server.job(made["id"])
    assert job["status"] == "done"
    assert job["step"] == job["steps"] == 6
    assert job["position"] is None
    assert set(job["timings"]) == {"queued", "text", "denoise", "network", "vae"}
    (url,) = job["images"]
    drawn = Image.open(io.BytesIO(server.client.get(url).content))
    expected = pipeline.generate(PROMPT, **fields, seeds=5, steps=6).images[0]
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))


def test_events_come_in_order(server: Running, pipeline: intaglio.Pipeline) -> None:
    with server.full():
        followed = server.post_job(seed=5, steps=6)
        assert server.events(followed["id"], until="queued") == [("queued", {"position": 1})]
    events = server.events(followed["id"])
    names = [name for name, _ in events]
    assert names[0] == "queued"
    assert names[-1] == "done"
    steps = [data for name, data in events if name == "step"]
    sigmas: list[float] = []
    pipeline.generate(PROMPT, seeds=5, steps=6, on_step=lambda s: sigmas.append(s.sigma))
    assert steps == [{"step": i + 1, "steps": 6, "sigma": s} for i, s in enumerate(sigmas)]
    previews = [data["step"] for name, data in events if name == "preview"]
    assert previews == sorted(set(previews))
    for i, (name, data) in enumerate(events):
        if name == "preview":  # decoded while the steps go on
            assert ("step", steps[data["step"] - 1]) in events[:i]
    assert events[-1][1] == {"images": server.job(followed["id"])["images"], "notes": []}


def test_a_preview_shows_its_step(server: Running, pipeline: intaglio.Pipeline) -> None:
    job = server.post_job(seed=5, steps=LONG)
    events = server.events(job["id"], until="preview")
    server.client.delete(f"/v1/jobs/{job['id']}")
    step, image = events[-1][1]["step"], events[-1][1]["image"]
    previews: list[Any] = []

    def on_step(seen: intaglio.Step) -> bool:
        if seen.step + 1 == step:
            previews.append(np.asarray(seen.preview()[0]))
        return not previews

    with pytest.raises(intaglio.Interrupted):
        pipeline.generate(PROMPT, seeds=5, steps=LONG, on_step=on_step)
    kind, _, encoded = image.partition(",")
    assert kind == "data:image/png;base64"
    drawn = Image.open(io.BytesIO(base64.b64decode(encoded)))
    np.testing.assert_array_equal(np.asarray(drawn), previews[0])


def test_a_late_reader_gets_the_last_preview_only() -> None:
    async def follow_late() -> list[tuple[int, str, dict[str, Any]]]:
        job = Job(SimpleNamespace(options={"steps": 3}), "", stored=True, preview=True)  # type: ignore[arg-type]
        reading = job.follow()
        job.set_position(1)
        seen = [await anext(reading)]
        for step in range(1, 4):
            job.advance(step, 1 - step / 3)
            job.add_preview(step, f"image {step}")
        job.finish([], [])
        return [*seen, *[event async for event in reading]]

    events = [(event, data.get("step")) for _, event, data in asyncio.run(follow_late())]
    steps = [("step", 1), ("step", 2), ("step", 3)]
    assert events == [("queued", None), *steps, ("preview", 3), ("done", None)]


def test_no_previews_unless_wanted(server: Running) -> None:
    job = server.post_job(steps=20, preview=False)
    assert "preview" not in [name for name, _ in server.events(job["id"])]


def test_events_continue_after_the_last_one_seen(server: Running) -> None:
    job = server.post_job(steps=4, preview=False)
    whole = server.events(job["id"])
    resumed = server.events(job["id"], **{"Last-Event-ID": "2"})
    assert resumed == whole[-len(resumed) :]
    assert 0 < len(resumed) < len(whole)


def test_readers_that_leave_leave_nothing_behind(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    made = server.post_job(steps=LONG, size="96x96")
    job = server.services.jobs[made["id"]]
    for _ in range(40):
        server.events(made["id"], until="step")  # then it disconnects, in the middle of the stream
    wait_until(lambda: job.readers == 0)
    assert not job.ended.is_set()
    server.client.delete(f"/v1/jobs/{made['id']}").raise_for_status()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_reader_gets_pings_while_nothing_happens(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intaglio.serve.engine.job.PING_SECONDS", 0.01)
    with server.full():
        waiting = server.post_job(steps=1)
        with server.client.stream("GET", f"/v1/jobs/{waiting['id']}/events") as stream:
            assert stream.headers["cache-control"] == "no-cache"
            assert stream.headers["x-accel-buffering"] == "no"
            assert ": ping" in stream.iter_lines()
    assert server.events(waiting["id"])[-1][0] == "done"


def test_a_running_job_is_cancelled_within_a_step(server: Running) -> None:
    job = server.post_job(steps=LONG)
    server.events(job["id"], until="step")
    cancelled = server.client.delete(f"/v1/jobs/{job['id']}")
    assert cancelled.status_code == 200
    assert cancelled.json()["status"] == "cancelled"
    assert cancelled.json()["error"]["code"] == "cancelled"
    steps = server.metric("steps_total")
    # The batch is free: another job runs to its end, and no other steps are made.
    server.events(server.post_job(steps=3)["id"])
    assert server.metric("steps_total") == steps + 3
    assert server.events(job["id"])[-1] == ("error", cancelled.json()["error"])


def test_a_waiting_job_is_cancelled_at_once(server: Running) -> None:
    with server.full():
        waiting, behind = server.post_job(steps=2), server.post_job(steps=2)
        assert server.job(behind["id"])["position"] == 2
        assert server.client.delete(f"/v1/jobs/{waiting['id']}").json()["status"] == "cancelled"
        assert server.job(behind["id"])["position"] == 1
    assert server.events(behind["id"])[-1][0] == "done"


def test_cancelling_an_ended_job_changes_nothing(server: Running) -> None:
    job = server.post_job(steps=2)
    server.events(job["id"])
    assert server.client.delete(f"/v1/jobs/{job['id']}").json()["status"] == "done"


@pytest.mark.parametrize("state", ["running", "queued"])
def test_a_deadline_ends_a_job(server: Running, state: str) -> None:
    server.events(server.post_job(steps=1)["id"])  # loads the model
    with server.full(size="96x96") if state == "queued" else nullcontext():
        job = server.post_job(steps=LONG, size="96x96", deadline=2)
        if state == "running":
            assert server.events(job["id"], until="step")[-1][0] == "step"
        name, data = server.events(job["id"])[-1]
    ended = server.job(job["id"])
    assert (name, data) == ("error", ended["error"])
    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "deadline_exceeded"
    assert ended["error"]["message"] == "the request did not finish within 2 seconds"


def test_a_client_that_disconnects_ends_its_run(server: Running) -> None:
    ended = server.metric("jobs_total", status="cancelled")
    body = json.dumps({"prompt": PROMPT, "steps": LONG}).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        wait_until(lambda: server.metric("running") == 1)
    wait_until(lambda: server.metric("jobs_total", status="cancelled") == ended + 1)
    assert server.metric("running") == 0
    assert server.metric("rejections_total", code="cancelled") == 0


def test_the_jobs_that_ended_first_are_dropped_first(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ran long is kept longer than jobs that ended before it."""
    monkeypatch.setattr("intaglio.serve.api.services.JOBS_KEPT", 2)
    with serving(forked_bundle, limits={"steps": LONG}) as server:
        long = server.post_job(steps=LONG)
        short = [server.post_job(steps=1) for _ in range(3)]
        for job in short:
            server.events(job["id"])
        server.client.delete(f"/v1/jobs/{long['id']}").raise_for_status()
        server.post_job(steps=1)
        assert server.job(long["id"])["status"] == "cancelled"
        found = [server.client.get(f"/v1/jobs/{job['id']}").status_code for job in short]
        assert found == [404, 404, 200]


def test_a_job_expires(forked_bundle: Path) -> None:
    """Even if no other job is posted."""
    with serving(forked_bundle, image_seconds=0.5) as server:
        job = server.post_job(steps=1)
        url = f"/v1/jobs/{job['id']}"
        wait_until(lambda: server.client.get(url).status_code == 404)


def test_the_image_endpoint_has_a_deadline(forked_bundle: Path) -> None:
    with serving(forked_bundle, limits={"steps": LONG, "deadline": 0.3}) as running:
        body = {"prompt": PROMPT, "steps": LONG}
        answer = running.client.post("/v1/images/generations", json=body)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"


def test_a_truncated_prompt_has_a_note(server: Running) -> None:
    job = server.post_job(prompt=" ".join(["boot"] * 200), steps=1)
    server.events(job["id"])
    notes = server.job(job["id"])["notes"]
    assert notes
    assert all("its end is ignored" in note for note in notes)


@pytest.mark.reported(
    "mcmonkeyprojects/SwarmUI#204",
    "lllyasviel/stable-diffusion-webui-forge#2496",
    "lllyasviel/stable-diffusion-webui-forge#1115",
)
@pytest.mark.parametrize(
    "options",
    [
        {"prompt": " ".join(["boot"] * 200)},
        {"prompt": " ".join(["boot"] * 200), "transport_from": "light"},
        {"negative_prompt": "a shoe", "cfg_scale": 1.0},
        {"negative_prompt": "a shoe", "cfg_scale": (2.0, 1.0), "cfg_window": (0.9, 1.0)},
        {"cfg_window": (0.9, 1.0), "cfg_scale": 3.0},
        {"dg_window": (0.3, 0.45), "dg_scale": 3.0},
    ],
    ids=str,
)
def test_what_generate_warns_of_is_a_note(
    server: Running, pipeline: intaglio.Pipeline, options: dict[str, Any]
) -> None:
    """A job says when a prompt is cut, and when its negative prompt or guidance changes nothing."""
    with pytest.warns(UserWarning, match="more tokens|no step has") as said:
        pipeline.generate(**{"prompt": PROMPT} | options)
    job = server.post_job(**options)["id"]
    assert server.events(job)[-1][1]["notes"] == [str(warning.message) for warning in said]


def test_a_job_whose_options_are_all_used_has_no_note(server: Running) -> None:
    job = server.post_job(negative_prompt="a shoe", cfg_scale=2, steps=4)["id"]
    assert server.events(job)[-1][1]["notes"] == []


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_job_is_not_found(server: Running, method: str) -> None:
    answer = server.client.request(method, "/v1/jobs/none")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "job_not_found"
