"""The OpenAPI page against the server, by schemathesis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from tests.serve.conftest import Running, serving

LIMITS = {"steps": 4, "n": 1, "width": 32, "height": 32, "queue": 1000}


@pytest.fixture(scope="module")
def described(forked_bundle: Path) -> Iterator[Running]:
    with serving(forked_bundle, max_batch=1, limits=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def api(described: Running) -> Any:
    return schemathesis.openapi.from_url(f"{described.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_is_as_its_page_says(case: Any) -> None:
    case.call_and_validate()
