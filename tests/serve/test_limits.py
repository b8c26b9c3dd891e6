"""Requests that are rejected before any work starts, with an answer that names the field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import PROMPT, Running, serving

LIMITS = {
    "width": 48, "height": 40, "steps": 6, "n": 3, "total_pixels": 3000, "prompt_characters": 50,
    "body_bytes": 2000, "deadline": 60,
}  # fmt: skip
ENDPOINTS = ["/v1/images/generations", "/v1/jobs"]


@pytest.fixture(scope="module")
def limited(forked_bundle: Path) -> Iterator[Running]:
    with serving(f"tiny={forked_bundle}", max_batch=2, limits=LIMITS) as running:
        yield running
        assert running.metric("jobs_total") == 0, "a rejected request ran"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("size", "52x32", "give up to 48x40"),
        ("size", "32x44", "give up to 48x40"),
        ("size", "48x40", ""),  # 1,920 pixels, which exceed the limit twice only
        ("size", "33x32", "multiples of 4"),
        ("size", "large", "size is invalid: give WIDTHxHEIGHT, like 32x32"),
        ("size", "0x32", "size is invalid"),
        ("size", 32, "give WIDTHxHEIGHT, like 32x32"),
        ("steps", 7, "give 6 or fewer"),
        ("steps", 0, "greater than or equal to 1"),
        ("steps", 2.5, "valid integer"),
        ("steps", "3", "valid integer"),
        ("steps", True, "valid integer"),
        ("n", 3, "give 2 or fewer"),
        ("n", 0, "greater than or equal to 1"),
        ("seed", -2, "greater than or equal to -1"),
        ("seed", 2**63, "less than or equal"),
        ("prompt", "x" * 51, "give 50 or fewer"),
        ("prompt", None, "prompt is missing"),
        ("prompt", "\ud800", "prompt is invalid"),
        ("negative_prompt", "x" * 51, "give 50 or fewer"),
        ("class_label", 1, "drawn by prompt"),
        ("cfg_scale", "much", "cfg_scale is invalid"),
        ("cfg_scale", [1, "2"], "cfg_scale is invalid: give one number, [first, last] or a number"),
        ("cfg_scale", [1, 2, 3], "cfg_scale lists 3 values and the run has"),
        ("guidance", "best", "guidance best is unknown: give cfg, apg"),
        ("guidance_eta", 0.5, "guidance_eta belongs to guidance apg"),
        ("guidance_rescale", 2, "give a number from 0 to 1"),
        ("slg_layers", [99], "there is no block 99"),
        ("slg_window", [0.0, 0.5], "slg_window is for blocks that are skipped"),
        ("cfg_scale", float("inf"), "cfg_scale is invalid"),
        ("dg_scale", float("nan"), "dg_scale is invalid"),
        ("cfg_window", 0.5, "cfg_window is invalid: give [start, end]"),
        ("skip_steps", 5, "skip_steps is invalid: give a list of numbers such as [4, 6]"),
        ("skip_steps", [4.5], "skip_steps is invalid: give a list of numbers such as [4, 6]"),
        ("skip_steps", [3, 3], "skip_steps 3 is given twice"),
        ("cfg_window", [0.5, 0.5], "give start < end"),
        ("cfg_window", [0, 1.5], "give start < end"),
        ("dg_window", [0.75, 0.25], "give start < end"),
        ("ma_keep", -0.5, "not 0 or more"),
        ("ma_keep", [0, -1], "not 0 or more"),
        ("response_format", "png", "response_format is invalid"),
        ("model", "other", "give one of tiny"),
        ("quality", "hd", "leave it out"),
        ("stream", True, "leave it out"),
        ("scheduler", "ddpm", "unknown scheduler"),
        ("reuse_interval", 2, "leave it out"),
        ("transport_from", "x" * 51, "give 50 or fewer"),
        ("guidance_scale", 4, "give cfg_scale instead"),
        ("num_inference_steps", 4, "give steps instead"),
        ("negativ_prompt", "light", "give negative_prompt instead"),
    ],
)
def test_a_field_is_rejected_by_name(
    limited: Running, endpoint: str, field: str, value: Any, words: str
) -> None:
    body = {"prompt": PROMPT, "n": 2 if field == "size" else 1, field: value}
    answer = limited.client.post(
        endpoint, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == (404 if field == "model" else 400), answer.text
    error = answer.json()["error"]
    assert error["param"] == field
    assert words in error["message"]
    assert field in error["message"]
    assert error["type"]
    assert error["code"]


@pytest.mark.parametrize(
    ("field", "value"), [("deadline", 61), ("deadline", 0), ("preview", "yes")]
)
def test_a_field_of_jobs_is_rejected_by_name(limited: Running, field: str, value: Any) -> None:
    answer = limited.client.post("/v1/jobs", json={"prompt": PROMPT, field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_a_job_returns_urls_only(limited: Running) -> None:
    body = {"prompt": PROMPT, "response_format": "b64_json"}
    answer = limited.client.post("/v1/jobs", json=body)
    assert answer.json()["error"]["param"] == "response_format"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_long_body_is_rejected(limited: Running, endpoint: str) -> None:
    body = b'{"prompt": "' + b"x" * 2000 + b'"}'
    announced = limited.client.post(endpoint, content=body)
    chunked = limited.client.post(endpoint, content=iter([body[:900], body[900:]]))
    for answer in (announced, chunked):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{}x", b'{"\\ud800": 1}']
)
def test_a_body_that_is_no_json_object_is_rejected(limited: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = limited.client.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_the_content_type_is_required(limited: Running) -> None:
    answer = limited.client.post("/v1/jobs", content=b'{"prompt": "a dress"}')
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = limited.client.post("/v1/jobs", content=b"{}", headers=form)
    assert "as application/json" in answer.json()["error"]["message"]


def test_rejections_are_counted(limited: Running) -> None:
    before = limited.metric("rejections_total", code="unknown_field")
    limited.client.post("/v1/jobs", json={"prompt": PROMPT, "style": "vivid"})
    assert limited.metric("rejections_total", code="unknown_field") == before + 1


def test_of_several_bundles_one_has_to_be_named(forked_bundle: Path, dual_bundle: Path) -> None:
    with serving(f"a={forked_bundle}", f"b={dual_bundle}") as running:
        answer = running.client.post("/v1/jobs", json={"prompt": PROMPT})
        assert answer.json()["error"]["param"] == "model"
        assert "a, b" in answer.json()["error"]["message"]
