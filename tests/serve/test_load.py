"""The load test in a short form: results and counts, never times."""

from __future__ import annotations

from pathlib import Path

from tests.serve.conftest import serving
from tests.serve.load import CLIENTS, Point, drive, page


def test_every_request_under_load_has_its_image(forked_bundle: Path) -> None:
    clients, requests = max(CLIENTS), 24
    with serving(forked_bundle) as server:
        asked, _ = drive(server.url, clients, requests)
        assert len(asked) == requests
        assert all(1 <= one.place <= clients for one in asked)
        assert server.metric("jobs_total", status="done") == requests
        assert server.metric("images_total") == requests
        assert server.metric("steps_total") == sum(8 + i % 5 for i in range(requests))
        assert server.metric("queue_wait_seconds_count") == requests
        assert server.metric("queue_depth") == server.metric("running") == 0


def test_the_page_has_a_row_for_each_point() -> None:
    points = [Point(b, n, 10, 1.0, 1.0, 1.0, 1.0, 1.0) for n in CLIENTS for b in (False, True)]
    text = page(points, [(100, 10**8)], "tiny")
    assert text.count("| on |") == text.count("| off |") == len(CLIENTS)
    assert "| 100 | 100 |" in text
