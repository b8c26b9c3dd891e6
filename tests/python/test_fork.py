"""A process that forks while it has a pipeline open, as servers and pools of workers do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The child ends as a worker does, with everything that it inherited still open.
SCRIPT = """
import os, sys
import numpy as np
import intaglio

def child(body):
    process = os.fork()
    if process == 0:
        body()
        sys.exit(7)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 7, status

def refused():
    for call in (
        lambda: opened.generate("boot", steps=1),
        lambda: opened.embed("boot"),
        lambda: batch.add(prompt="boot"),
        lambda: batch.step(),
        lambda: last.preview(),
    ):
        try:
            call()
        except intaglio.UsageError as error:
            assert "open it after the fork" in str(error), error
        else:
            raise AssertionError("not refused")

def draws():
    again = intaglio.Pipeline.open(sys.argv[1]).generate("boot", steps=2)
    np.testing.assert_array_equal(again.latents, drawn.latents)

opened = intaglio.Pipeline.open(sys.argv[1])
assert opened.bundle.name
if sys.argv[2] == "unused":
    child(lambda: None)
batch = intaglio.Batch(opened)
batch.add(prompt="boot", steps=4)
(last,) = batch.step()
drawn = opened.generate("boot", steps=2)
child(refused)
child(draws)
child(lambda: [globals().pop(name) for name in ("opened", "batch", "last", "drawn")])
np.testing.assert_array_equal(opened.generate("boot", steps=2).latents, drawn.latents)
"""


@pytest.mark.reported("microsoft/onnxruntime#31961", "benoitc/gunicorn#2478", "dmlc/xgboost#8040")
@pytest.mark.parametrize("used", ["used", "unused"])
def test_a_forked_process_is_told_to_open_the_pipeline_itself(
    forked_bundle: Path, used: str
) -> None:
    """A process that was forked with a pipeline open gets an error that says what to do, can open
    its own, and ends with the code that it chose: it neither hangs nor is aborted."""
    words = [sys.executable, "-c", SCRIPT, str(forked_bundle), used]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
