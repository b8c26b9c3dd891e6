"""The load test in a short form, which checks images and counts but no times."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

import intaglio
from tests.serve.conftest import serving
from tests.serve.load import CLIENTS, Point, drive, fields, page


def test_every_request_under_load_has_its_image(
    forked_bundle: Path, pipeline: intaglio.Pipeline
) -> None:
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
    for one in asked:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in fields(one.number).items()}
        prompt, seed = options.pop("prompt"), options.pop("seed")
        expected = pipeline.generate(prompt, seeds=seed, **options).images[0]
        drawn = Image.open(io.BytesIO(one.png))
        # Rows in a batch may round differently, by one level of 255.
        assert abs(np.asarray(drawn, int) - np.asarray(expected, int)).max() <= 1


def test_the_page_has_a_row_for_each_point() -> None:
    rates, ratios = [3.0, 9.0, 4.0], [1.0, 2.0, 1.5]
    points = [
        Point(on, n, 12, rates, ratios, 1.0, 1.0, 1.0, 1.0) for n in CLIENTS for on in (False, True)
    ]
    text = page(points, [(100, 10**8)], "tiny")
    assert text.count("| on |") == text.count("| off |") == len(CLIENTS)
    assert text.count("| 4.00 | 1.50 [1.00, 2.00] |") == len(points)
    assert "| 100 | 100 |" in text
