"""Compare loops as people have them: with the defaults, caches and types of each.

    pip install -e '.[bench,openvino]' openvino-genai==2026.4.1.0
    python -m benchmarks.bench.shipped mid-sd3 28 3 2  # steps, rounds, threads
    python -m benchmarks.bench.shipped fashion-sd3 28 9 1

Each is compared with the exact float32 run of its own loop, in time and in the final latents.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bench.measuring import interleave, ratio, relative, seconds
from benchmarks.bench.models import Model, models
from benchmarks.bench.page import table
from benchmarks.bench.runtimes import FORKED, Runtime, intaglio_runtime
from benchmarks.bench.sanity import genai_runtime, prepare
from benchmarks.bench.workload import Workload

INSTRUCTIONS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx2")
# Like GenAI's default, which runs the first 6 and the last 2 steps, and every third in between.
SKIPPING: dict[str, Any] = {"skip_interval": 3, "skip_window": (0.2, 0.92)}
GENAI: dict[str, dict[str, Any]] = {
    "OpenVINO GenAI, float32": {},
    "OpenVINO GenAI, float32, TaylorSeer": {"cached": True},
    "OpenVINO GenAI, its type": {"hints": {}},
    "OpenVINO GenAI as shipped": {"hints": {}, "cached": True},
}
OURS: dict[str, dict[str, Any]] = {
    FORKED: {},
    f"{FORKED}, prepacked": {"prepack": True},
    f"{FORKED}, OpenVINO": {"device": "openvino"},
    f"{FORKED}, OpenVINO, bfloat16": {"device": "openvino", "precision": "bfloat16"},
}


def instructions() -> str:
    """The processor's instructions that decide these figures, as Linux names them."""
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return ", ".join(name for name in INSTRUCTIONS if name in flags) or "none"


def measure(model: Model, steps: int, rounds: int, threads: int) -> str:
    """The table of a model."""
    folder, workload = prepare(model, steps)
    bundle = model.bundle("forked", model.blocks // 2)
    guided = workload.with_(mode="cfg+dg")
    object.__setattr__(guided, "text", workload.text)
    runs: dict[str, tuple[Runtime, Workload]] = {}
    exact: dict[str, str] = {}  # the run that each is compared with
    for name, how in GENAI.items():
        runs[name] = genai_runtime(folder, workload, threads, **how), workload
        exact[name] = next(iter(GENAI))
    for mode, work in (("CFG", workload), ("CFG+DG", guided)):
        for name, how in OURS.items():
            for skips, options in (("", {}), (", skipping", SKIPPING)):
                full = f"{mode}: {name}{skips}"
                runs[full] = intaglio_runtime(bundle, threads, **how, **options), work
                exact[full] = f"{mode}: {FORKED}"
    samples = interleave(runs, rounds)
    rows = []
    for name, of in samples.items():
        span = "{median:.2f} [{low:.2f}, {high:.2f}]".format(**ratio(of, samples[f"CFG: {FORKED}"]))
        error = relative(of[-1].latents, samples[exact[name]][-1].latents)
        rows.append([name, f"{median(seconds(of)) / steps:.4g}", span, f"{error:.1e}"])
    heads = ["loop", "seconds per step", f"time / CFG: {FORKED}", "relative L2 from its exact run"]
    return f"Instructions: {instructions()}; {os.cpu_count()} processors\n\n" + table(heads, rows)


if __name__ == "__main__":
    print(measure(models(Path("build/bench"))[sys.argv[1]], *map(int, sys.argv[2:])))
