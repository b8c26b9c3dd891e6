"""Time and peak memory of each stage of a program, sampled from outside."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PERIOD = 0.02  # seconds between samples
MARK = "stage: "  # how a program says that its next stage begins
ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """Seconds, and the largest bytes seen: all resident memory, and what belongs to no file."""

    name: str
    seconds: float = 0.0
    resident: int = 0
    anonymous: int = 0


@dataclass
class Measured:
    """Stages in order, the kernel's own peak of resident memory, and what else was printed."""

    stages: list[Stage] = field(default_factory=list)
    peak: int = 0
    anonymous: int = 0
    seconds: float = 0.0
    output: str = ""


def measure(module: str, arguments: Sequence[str]) -> Measured:
    """Run `python -m module arguments`; its stages begin where it prints `MARK` and a name.

    Raises:
        RuntimeError: it fails.
    """
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-u", "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        measured = Measured([Stage("starting")])
        sampler = threading.Thread(target=_sample, args=(process.pid, measured), daemon=True)
        sampler.start()
        assert process.stdout is not None
        since = began
        for line in process.stdout:
            if not line.startswith(MARK):
                measured.output += line
                continue
            now = time.monotonic()
            measured.stages[-1].seconds += now - since
            since = now
            name = line.removeprefix(MARK).strip()
            if name != measured.stages[-1].name:
                measured.stages.append(Stage(name))
        measured.stages[-1].seconds += time.monotonic() - since
    sampler.join()
    measured.seconds = time.monotonic() - began
    measured.anonymous = max(stage.anonymous for stage in measured.stages)
    if process.returncode:
        raise RuntimeError(f"{module} ended with {process.returncode}")
    return measured


def _sample(pid: int, measured: Measured) -> None:
    """Read the process's sizes until it is gone."""
    status = Path(f"/proc/{pid}/status")
    while True:
        stage = measured.stages[-1]
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            sizes = {name: int(lines[name].split()[0]) * 1024 for name in _SIZES}
        except (OSError, KeyError):
            return
        stage.resident = max(stage.resident, sizes["VmRSS"])
        stage.anonymous = max(stage.anonymous, sizes["RssAnon"])
        measured.peak = max(measured.peak, sizes["VmHWM"])
        time.sleep(PERIOD)


_SIZES = ("VmRSS", "RssAnon", "VmHWM")
