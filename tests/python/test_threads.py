"""Several threads on one pipeline, the GIL, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intaglio
from tests.python.conftest import PROMPT

JOBS: list[dict[str, Any]] = [
    {"prompt": PROMPT, "seeds": 1, "steps": 6},
    {"prompt": "a coat", "seeds": [2, 3], "steps": 9, "dg_scale": 1.0, "scheduler": "heun"},
    {"prompt": "", "seeds": 4, "height": 24, "width": 40, "cfg_scale": 1.0},
]


def test_each_thread_gets_what_it_would_get_alone(pipeline: intaglio.Pipeline) -> None:
    alone = [pipeline.generate(**job).latents for job in JOBS]
    start = threading.Barrier(len(JOBS))

    def run(job: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
        start.wait()
        return [pipeline.generate(**job).latents for _ in range(3)]

    with ThreadPoolExecutor(len(JOBS)) as pool:
        together = list(pool.map(run, JOBS))
    for expected, results in zip(alone, together, strict=True):
        for result in results:
            np.testing.assert_array_equal(result, expected)


def test_a_first_run_may_be_several_at_once(bundle: Path) -> None:
    """Graphs are loaded at first use, also when two threads need them at once."""
    expected = intaglio.Pipeline.open(bundle).generate(PROMPT).latents
    fresh = intaglio.Pipeline.open(bundle)
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(lambda _: fresh.generate(PROMPT), range(3)):
            np.testing.assert_array_equal(result.latents, expected)


def test_the_gil_is_released_while_sampling(forked: intaglio.Pipeline) -> None:
    """Here a thread only loses the GIL by giving it up. So when this thread sees a run that has
    begun and not ended, the run has given it up."""
    state: dict[str, bool] = {}

    def run() -> None:
        state["started"] = True
        try:
            forked.generate(PROMPT, steps=1000, on_step=lambda s: "seen" not in state)
        except intaglio.Interrupted:
            state["stopped"] = True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10_000)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        while "started" not in state:
            time.sleep(0.001)
        state["seen"] = True
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert state.get("stopped")


def test_arrays_may_die_in_a_thread_without_the_gil(forked: intaglio.Pipeline) -> None:
    """The run drops the given latents after it released the GIL."""
    for _ in range(5):
        forked.generate(PROMPT, steps=1, latents=np.zeros((1, 4, 16, 16), np.float32))


# Each thread uses another function that releases the GIL, and is in one when the process ends.
ENDING = """
import sys, threading, time
import numpy as np
import intaglio
from intaglio import _core

bundle, seconds = sys.argv[1], float(sys.argv[2])
pipeline = intaglio.Pipeline.open(bundle)
drawn = pipeline.generate("a boot", steps=1)
batch = intaglio.Batch(pipeline)
noise = np.zeros((1, 4, 16, 16), np.float32)

def run_batch():
    if not len(batch):
        batch.add(prompt="a boot", steps=50)
    for step in batch.step():
        step.preview()

def endless(call):
    while True:
        call()

for call in (
    lambda: pipeline.generate("a boot", steps=50),
    lambda: pipeline.generate("a boot", steps=50, on_step=lambda step: step.preview() and None),
    lambda: pipeline.generate("a boot", steps=1, latents=noise.copy()),
    lambda: pipeline.embed("a boot"),
    lambda: intaglio.validate(pipeline.bundle, prompt="a boot"),
    lambda: intaglio.Bundle.open(bundle),
    lambda: drawn.save("/dev/null"),
    lambda: _core.draw_noise([1, 4, 64, 64], [1]),
    run_batch,
):
    threading.Thread(target=endless, args=(call,), daemon=True).start()
time.sleep(seconds)
"""


@pytest.mark.reported("pytorch/pytorch#38228", "pybind/pybind11#2215")
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.2, 0.3])
def test_a_process_ends_while_daemon_threads_run(forked_bundle: Path, seconds: float) -> None:
    """A process that ends while its daemon threads draw ends with code 0, as with NumPy's."""
    words = [sys.executable, "-c", ENDING, str(forked_bundle), str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The helper thread strikes when the main thread is inside generate(), which has no callback.
SCRIPT = """
import os, signal, sys, threading, time
import intaglio

pipeline = intaglio.Pipeline.open(sys.argv[1])
main = threading.main_thread().ident

def strike():
    while sys._current_frames()[main].f_code.co_name != "_run":  # of Pipeline.generate
        time.sleep(0.01)
    time.sleep(0.5)
    print("struck", flush=True)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=strike).start()
try:
    pipeline.generate("a boot", steps=1000, batch=16)
    print("finished")
except KeyboardInterrupt:
    print("interrupted")
assert pipeline.generate("a boot", steps=1).images
print("usable")
"""


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle the signal, which processes of pytest-xdist, and what they start, would ignore."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_a_run_without_callback(forked_bundle: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(forked_bundle)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.split() == ["struck", "interrupted", "usable"], run.stderr


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_a_step_callback(forked: intaglio.Pipeline) -> None:
    seen: list[int] = []

    def on_step(step: intaglio.Step) -> None:
        seen.append(step.step)
        if step.step == 2:
            signal.raise_signal(signal.SIGINT)

    try:
        forked.generate(PROMPT, steps=10, on_step=on_step)
    except KeyboardInterrupt:
        seen.append(-1)
    assert seen == [0, 1, 2, -1]
