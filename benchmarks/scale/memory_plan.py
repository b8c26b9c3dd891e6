"""Compare the memory plan of SD3-medium with T5 with what a run takes.

`python -m benchmarks.scale.memory_plan WORK`

Writes and exports the model below WORK, which takes 25 GB, unless its bundle is there. Then it
draws with `--max-memory` in a process of its own, and without it under a limit of the address space
under which the first run succeeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.scale.limited_run import SIDE
from benchmarks.scale.measuring import measure
from benchmarks.scale.report import parts, row, save

LIMIT = "12GB"
# What is mapped but never touched, such as the reserves of threads, counts too.
ADDRESS_SPACE = 16_000_000_000
RUN = "benchmarks.scale.limited_run"


def main(work: Path) -> None:
    bundle = work / "sd3-t5.bundle"
    if not bundle.exists():
        source = work / "sd3-t5"
        measure("benchmarks.scale.source", ["sd3-medium with T5", str(source), "float16"])
        arguments = [str(source), str(bundle), "float16", "810"]
        measure("benchmarks.scale.export_stages", arguments)
    plan = plan_of(bundle)
    limited = measure(RUN, [str(bundle), "--max-memory", LIMIT])
    space = ["--address-space", str(ADDRESS_SPACE)]
    measure(RUN, [str(bundle), "--max-memory", LIMIT, *space])
    try:
        measure(RUN, [str(bundle), *space])
    except RuntimeError:
        died = True
    else:
        died = False
    facts = {
        "weights": "random, but T5's matrices are zeros",
        "dtype": "float16, and T5's second matrices of its feed-forward layers float32",
        "plan": f"{plan['peak'] / 1e9:.2f} GB with --max-memory {LIMIT} at {SIDE} x {SIDE}",
        "measured": f"{limited.peak / 1e9:.2f} GB resident, {plan['peak'] / limited.peak - 1:+.1%}",
        f"without the plan under ulimit -v {ADDRESS_SPACE // 1000}": "died" if died else "ran",
    }
    tables = {"run": [row("with --max-memory", limited)], "of the run": parts(limited)}
    save("sd3-medium with T5", {"facts": facts, "tables": tables})


def plan_of(bundle: Path) -> dict[str, Any]:
    """What `intaglio inspect --plan` prints, with the memory of the process that draws."""
    arguments = ["--plan", "--json", "--device", "cpu", "--size", f"{SIDE}x{SIDE}"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "intaglio",
            "inspect",
            str(bundle),
            *arguments,
            "--max-memory",
            LIMIT,
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


if __name__ == "__main__":
    main(Path(sys.argv[1]))
