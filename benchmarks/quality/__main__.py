"""Measure what low precision costs the shipped model, and write the section "Quality" of
docs/performance.md: `python -m benchmarks.quality -o docs [--images N]`

For each precision: errors of one forward, of the differences of branches and of the guided D
(`branches.py`), of final latents, the size of the bundle, what the shipped judge says about the
pictures (`pictures.py`), and a strip of pictures. The bundles are exported first and kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench.document import section_parser, write_section
from benchmarks.quality.branches import branch_errors
from benchmarks.quality.pictures import draw_all, judged, save_strip
from intaglio.analysis.quality.judge import Judge
from intaglio_export.exporter import export_bundle
from intaglio_export.options import Dtype, ExportRequest, QuantizeEncoders

MODEL = Path("models/fashion-sd3")
EXACT = "float32"
# Of --quantize, without fp4, which export refuses for this model.
SCHEMES = ("int8", "int4", "int8-dynamic", "fp8", "int8-qdq")
# What `intaglio export` is given for each row.
PRECISIONS: dict[str, dict[str, str]] = (
    {name: {"dtype": name} for name in Dtype}
    | {name: {"quantize": name} for name in SCHEMES}
    | {f"encoders {name}": {"quantize_encoders": name} for name in QuantizeEncoders}
)
COLUMNS = ("embeddings", "D_c", "D_c - D_0", "D_c - D_m", "guided D")


def main() -> None:
    parser = section_parser("benchmarks.quality", __doc__ or "")
    parser.add_argument("--images", type=int, default=600, help="for the judge [600]")
    parser.add_argument("--seeds", type=int, default=6, help="runs for the branches [6]")
    parser.add_argument("--steps", type=int, default=8, help="of every run [8]")
    parser.set_defaults(work=Path("build/quality"))
    args = parser.parse_args()
    bundles = {name: exported(name, args.work) for name in PRECISIONS}
    result = measure(bundles, args.output, args.images, args.seeds, args.steps)
    write_section(args.output / "performance.md", "quality", section(result))


def exported(name: str, work: Path) -> Path:
    """Return the shipped model's bundle in that precision; it is kept below `work`."""
    folder = work / name.replace(" ", "-")
    if not folder.exists():
        print(f"exporting {name}", flush=True)
        work.mkdir(parents=True, exist_ok=True)
        export_bundle(ExportRequest(MODEL, folder, **PRECISIONS[name]))  # type: ignore[arg-type]
    return folder


def measure(
    bundles: Mapping[str, Path], output: Path, images: int, seeds: int, steps: int
) -> dict[str, Any]:
    """Measure `bundles`, one of which is `EXACT`, and write quality.json and the strips.

    They go into the folder performance of `output`.
    """
    judge = Judge.open(MODEL / "judge")
    others = {name: path for name, path in bundles.items() if name != EXACT}
    branches = branch_errors(bundles[EXACT], others, judge.prompts, seeds, steps)
    drawn, labels = draw_all(bundles, judge, images, steps)
    seen = judged(judge, drawn, labels, EXACT)
    folder = output / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    for name, of in drawn.items():
        save_strip(of, drawn[EXACT], folder / strip(name))
        errors = of.latent_errors(drawn[EXACT])
        rows[name] = {
            "bytes": _bytes(bundles[name]),
            "errors": branches.get(name, {}),
            "latents": {"median": float(np.median(errors)), "largest": float(errors.max())},
            **seen[name],
        }
    result = {
        "images": images,
        "seeds": seeds,
        "steps": steps,
        "cores": len(os.sched_getaffinity(0)),
        "precisions": rows,
    }
    (folder / "quality.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def strip(name: str) -> str:
    """The file name of the pictures in that precision."""
    return f"quality-{name.replace(' ', '-')}.png"


def _bytes(bundle: Path) -> int:
    files = json.loads((bundle / "bundle.json").read_text("utf-8"))["files"]
    return sum(file["bytes"] for file in files.values())


def section(result: dict[str, Any]) -> str:
    """Return the section of the page."""
    rows = result["precisions"]
    lines = [
        f"`make quality` measured these tables, the pictures and [their data]"
        f"(performance/quality.json): {result['seeds']} runs of {result['steps']} steps for the"
        f" branches, {result['images']} images for the rest.",
        "",
        f"| | bundle, MB | {' | '.join(COLUMNS)} | final latents |",
        f"|---|{'---|' * (len(COLUMNS) + 2)}",
    ]
    for name, row in rows.items():
        errors = row["errors"] or {of: {"mean": 0.0, "largest": 0.0} for of in COLUMNS}
        cells = [_percents(errors[of]["mean"], errors[of]["largest"]) for of in COLUMNS]
        latents = _percents(row["latents"]["median"], row["latents"]["largest"])
        lines.append(f"| {name} | {row['bytes'] / 1e6:.1f} | {' | '.join(cells)} | {latents} |")
    lines += ["", "| | pictures, and differences from float32 around grey |", "|---|---|"]
    lines += [f"| {name} | ![{name}](performance/{strip(name)}) |" for name in rows]
    if any("frechet" not in row for row in rows.values()):
        return "\n".join(lines)
    lines += [
        "",
        "| | class accuracy | minus float32 | Fréchet distance | minus float32 |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [f"{row['accuracy']:.3f}", _interval(row.get("accuracy_difference"), 3)]
        cells += [f"{row['frechet']:.2f}", _interval(row.get("frechet_difference"), 2)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percents(typical: float, largest: float) -> str:
    if largest == 0:
        return "0"
    return f"{_percent(typical)} ({_percent(largest)})"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _interval(found: dict[str, float] | None, digits: int) -> str:
    if found is None:
        return ""
    measured, low, high = (f"{found[key]:.{digits}f}" for key in ("measured", "low", "high"))
    return f"{measured} [{low}, {high}]"


if __name__ == "__main__":
    main()
