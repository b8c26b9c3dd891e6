"""Compare the memory plan of SD3-medium with T5 with what a run takes.

`python -m benchmarks.scale.memory_plan WORK [float16|int8 ...]`

Writes the model below WORK and exports it with float16 or int8 text encoders, which takes 32 or
27 GB, unless the bundle is there. Then it draws with `--max-memory` in a process of its own, and
without it under a limit of the address space under which the first run succeeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale.limited_run import SIDE
from benchmarks.scale.measuring import measure
from benchmarks.scale.report import parts, row, save

RUN = "benchmarks.scale.limited_run"
NAME = "sd3-medium with T5"


@dataclass(frozen=True)
class Limits:
    """The limit of a plan, and one of the address space, where what is mapped but never touched,
    such as the reserves of threads, counts too."""

    planned: str
    address_space: int
    dtype: str


LIMITS = {
    "float16": Limits(
        "12GB",
        16_000_000_000,
        "float16, and T5's second matrices of its feed-forward layers float32",
    ),
    "int8": Limits("8GB", 12_000_000_000, "float16, and text encoders int8"),
}


def main(work: Path, *encoders: str) -> None:
    for kind in encoders or LIMITS:
        run(work, kind, LIMITS[kind])


def run(work: Path, encoders: str, limits: Limits) -> None:
    """Measure one bundle and save what was found."""
    bundle = work / f"sd3-t5-{encoders}.bundle"
    if not bundle.exists():
        source = work / "sd3-t5"
        if not source.exists():
            measure("benchmarks.scale.source", [NAME, str(source), "float16"])
        quantized = [] if encoders == "float16" else [encoders]
        arguments = [str(source), str(bundle), "float16", "810", *quantized]
        measure("benchmarks.scale.export_stages", arguments)
    plan = plan_of(bundle, limits.planned)
    limited = measure(RUN, [str(bundle), "--max-memory", limits.planned])
    space = ["--address-space", str(limits.address_space)]
    measure(RUN, [str(bundle), "--max-memory", limits.planned, *space])
    try:
        measure(RUN, [str(bundle), *space])
    except RuntimeError:
        died = True
    else:
        died = False
    facts = {
        "weights": "random",
        "dtype": limits.dtype,
        "plan": f"{plan['peak'] / 1e9:.2f} GB with --max-memory {limits.planned}"
        f" at {SIDE} x {SIDE}",
        "measured": f"{limited.peak / 1e9:.2f} GB resident, {plan['peak'] / limited.peak - 1:+.1%}",
        f"without the plan under ulimit -v {limits.address_space // 1000}": "died"
        if died
        else "ran",
    }
    tables = {"run": [row("with --max-memory", limited)], "of the run": parts(limited)}
    name = NAME if encoders == "float16" else f"{NAME} in {encoders}"
    save(name, {"facts": facts, "tables": tables})


def plan_of(bundle: Path, limit: str) -> dict[str, Any]:
    """What `intaglio inspect --plan` prints, with the memory of the process that draws."""
    size = f"{SIDE}x{SIDE}"
    arguments = ["--plan", "--json", "--device", "cpu", "--size", size, "--max-memory", limit]
    command = [sys.executable, "-m", "intaglio", "inspect", str(bundle), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
