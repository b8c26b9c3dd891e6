"""The OpenAPI page against the server, by schemathesis."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.serve.conftest import serving

LIMITS = {"steps": 4, "n": 1, "width": 32, "height": 32, "queue": 1000}


def test_the_server_is_as_its_page_says(forked_bundle: Path, tmp_path: Path) -> None:
    """Requests that fit the page and requests that do not, and what one answer gives the next."""
    with serving(forked_bundle, max_batch=1, limits=LIMITS) as server:
        run = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
                "--checks", "all",
                # What fits the page may still be above a limit, of the server or of a model; and a
                # job that was cancelled can still be asked for.
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
