"""How many threads there are, and that many of one process can open graphs at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import PROMPT, Command

# All threads pass one barrier and then open the first sessions of the process.
PROGRAM = """
import sys, threading, intaglio
pipelines = [intaglio.Pipeline.open(sys.argv[1], threads=1) for _ in range(8)]
barrier = threading.Barrier(len(pipelines))
failures = []

def generate(pipeline):
    barrier.wait()
    try:
        pipeline.generate("a coat", steps=1)
    except intaglio.Error as error:
        failures.append(str(error))

threads = [threading.Thread(target=generate, args=[pipeline]) for pipeline in pipelines]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit("\\n".join(failures) or 0)
"""


def test_the_first_sessions_may_open_at_once(forked_bundle: Path) -> None:
    """ONNX Runtime adds the domain of our operators to a table without a lock. When two threads did
    so at once, one of eight processes like this failed."""
    for _ in range(12):
        words = [sys.executable, "-c", PROGRAM, str(forked_bundle)]
        assert subprocess.run(words, capture_output=True, text=True).stderr == ""


@contextmanager
def control_group(controller: str, **limits: int) -> Iterator[Callable[[], None]]:
    """Yield a function that moves the process that calls it into a new group with these limits.

    Skips where no such group can be made, because the system has groups of version 2 only or does
    not let this user make one.
    """
    group = Path(f"/sys/fs/cgroup/{controller}/intaglio-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        for name, limit in limits.items():
            (group / f"{controller}.{name}").write_text(str(limit))
        yield lambda: (group / "cgroup.procs").write_text("0") and None
    finally:
        group.rmdir()


def threads(command: Command, bundle: Path, preexec: Callable[[], None] | None = None) -> int:
    """Return the number of threads that a run reports."""
    flags = ["--prompt", PROMPT, "--steps", 1, "-o", "/dev/null", "--report", "report.json"]
    done = command("generate", bundle, *flags, preexec_fn=preexec)
    assert done.returncode == 0, done.stderr
    backend = json.loads((command.folder / "report.json").read_text())["backend"]
    (count,) = re.findall(r"(\d+) threads?", backend)
    return int(count)


@pytest.mark.reported("microsoft/onnxruntime#15146", "jax-ml/jax#24631")
def test_there_are_as_many_threads_as_the_process_may_use(
    command: Command, forked_bundle: Path
) -> None:
    """A process that may use some of the machine's processors has that many threads."""
    usable = sorted(os.sched_getaffinity(0))
    assert threads(command, forked_bundle) <= len(usable)
    assert threads(command, forked_bundle, lambda: os.sched_setaffinity(0, usable[:1])) == 1


@pytest.mark.reported("microsoft/onnxruntime#15146", "jax-ml/jax#24631")
def test_a_quota_limits_the_threads(command: Command, forked_bundle: Path) -> None:
    """A container that may use the time of one processor has one thread."""
    with control_group("cpu", cfs_period_us=100_000, cfs_quota_us=100_000) as join:
        assert threads(command, forked_bundle, join) == 1


def test_threads_that_cannot_be_made(command: Command, forked_bundle: Path) -> None:
    """Where the system allows no more threads, one thread draws, and more are refused in a
    sentence that says so."""
    flags = ["generate", forked_bundle, "--prompt", PROMPT, "--steps", 1]
    with control_group("pids", max=1) as join:
        done = command(*flags, "--threads", 2, preexec_fn=join)
        assert done.returncode == 4
        assert "needs more threads than the system allows this process: give --threads 1" in (
            done.stderr
        )
        done = command(*flags, "--threads", 1, preexec_fn=join)
        assert (done.returncode, done.stderr) == (0, "")
