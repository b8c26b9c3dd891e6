"""The server against its OpenAPI document, with schemathesis."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.conftest import serving

LIMITS = {"steps": 4, "n": 1, "width": 32, "height": 32, "queue": 1000}


@pytest.mark.slow
def test_the_server_matches_its_document(forked_bundle: Path, tmp_path: Path) -> None:
    """Valid and invalid requests, and sequences in which a request uses an earlier answer."""
    with serving(forked_bundle, max_batch=1, limits=LIMITS) as server:
        run = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
                "--checks", "all",
                # A valid request may still exceed a limit of the server or of a model, and a
                # cancelled job can still be fetched.
                "--exclude-checks", "positive_data_acceptance,use_after_free",
                "--max-examples", "25", "--seed", "1", "--generation-database", "none",
                "--no-shrink", "--continue-on-failure", "--request-timeout", "240",
            ],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout
        assert server.metric("rejections_total", code="invalid_value") > 100
        assert server.metric("jobs_total", status="done") > 0
        failed = [job.error for job in server.services.jobs.values() if job.status == "failed"]
        assert {error.detail.code for error in failed if error} <= {"deadline_exceeded"}
