"""Write docs/scale.json and the size section of docs/performance.md.

python -m benchmarks.scale.report
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from benchmarks.bench.document import write_section
from benchmarks.scale.measuring import ROOT, Measured

DATA = ROOT / "docs/scale.json"
PAGE = ROOT / "docs/performance.md"
_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxruntime")
_HEAD = """\
## Size

These are full configurations of published models with random weights, on {cores} cores and
{memory} GB of memory. `make scale` measures them and writes this section and [its
data](scale.json).

*Resident* is the kernel's peak (VmHWM). It includes pages of mapped weights, which the kernel can
take back. *Anonymous* is the memory that it cannot take back.
"""


def row(name: str, measured: Measured) -> dict[str, Any]:
    """A table's row: whole seconds, and peaks in GB (1e9 bytes)."""
    return {
        "stage": name,
        "seconds": round(measured.seconds),
        "resident_gb": _gb(measured.peak),
        "anonymous_gb": _gb(measured.anonymous),
    }


def parts(measured: Measured) -> list[dict[str, Any]]:
    """A row for each stage of one program."""
    return [
        {
            "stage": stage.name,
            "seconds": round(stage.seconds, 1),
            "resident_gb": _gb(stage.resident),
            "anonymous_gb": _gb(stage.anonymous),
        }
        for stage in measured.stages
    ]


def save(name: str, result: dict[str, Any]) -> None:
    """Put `result` into docs/scale.json, write the section and print the result."""
    data = json.loads(DATA.read_text("utf-8")) if DATA.exists() else {"models": {}}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    data["machine"] = {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in _PACKAGES},
    }
    data["models"][name] = result
    DATA.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    write_page()
    print(_model(name, result))


def write_page() -> None:
    """Write the section of docs/performance.md from docs/scale.json."""
    data = json.loads(DATA.read_text("utf-8"))
    machine = data["machine"]
    head = _HEAD.format(cores=machine["cores"], memory=machine["memory_gb"])
    tables = [_model(name, result) for name, result in sorted(data["models"].items())]
    write_section(PAGE, "size", "\n".join([head, *tables]))


def _model(name: str, result: dict[str, Any]) -> str:
    lines = [
        f"### {name}",
        "",
        *(f"- {key}: {value}" for key, value in result["facts"].items()),
        "",
    ]
    for title, rows in result["tables"].items():
        lines += [f"| {title} | seconds | resident GB | anonymous GB |", "|---|---:|---:|---:|"]
        lines += (_line(row.values()) for row in rows)
        lines.append("")
    if files := result.get("files"):
        lines += ["| file | MB |", "|---|---:|"]
        lines += (_line((path, f"{size / 1e6:,.1f}")) for path, size in files.items())
        lines.append("")
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _gb(size: int) -> float:
    return round(size / 1e9, 2)


if __name__ == "__main__":
    write_page()
