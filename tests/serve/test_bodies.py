"""Bodies that are JSON for the client only."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.serve.conftest import PROMPT, Running

BODY = json.dumps({"prompt": PROMPT, "steps": 1}).encode()


BODIES = {
    "compressed": gzip.compress(BODY),
    "nested": b"[" * 20_000 + b"]" * 20_000,
    "digits": BODY[:-1] + b', "seed": ' + b"9" * 5000 + b"}",
}


@pytest.mark.reported("QuantumNous/new-api#4913", "HarperFast/harper#1292")
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_no_parser_reads_is_explained(server: Running, body: bytes) -> None:
    """A body that is compressed, nested too deeply or a number without end gets a reason."""
    headers = {"Content-Type": "application/json"}
    answer = server.client.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "invalid_json"
    assert "not compressed, nor nested deeply" in error["message"]


@pytest.mark.reported("raullenchai/Rapid-MLX#798")
@pytest.mark.parametrize("levels", [10, 100, 900])
def test_a_nested_value_is_an_invalid_one(server: Running, levels: int) -> None:
    """A value that the parser still reads, but that is nested deeply, is refused by its field."""
    body = BODY[:-1] + b', "cfg_scale": ' + b"[" * levels + b"]" * levels + b"}"
    headers = {"Content-Type": "application/json"}
    answer = server.client.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "cfg_scale"
