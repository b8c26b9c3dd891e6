"""Test that many threads of one process can open graphs at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
