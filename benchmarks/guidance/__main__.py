"""Compare guidance methods at equal cost on the shipped model, for docs/reports/guidance.

    python -m benchmarks.guidance -o docs

Pictures are drawn with the torch model and kept in the folder --work, and the same command
continues there. The runtime is timed with the methods that it has.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from benchmarks.guidance import page
from benchmarks.guidance.comparison import Bench, Sizes, compare
from benchmarks.guidance.timing import runtime_ratios, torch_ratios
from intaglio.analysis.report.output_folder import versions
from intaglio.analysis.report.page import FIGURES, Report

MODEL, BUNDLE = Path("models/fashion-sd3"), Path("build/bundles/fashion-sd3")
ROUNDS = 5


def report(
    model: Path, bundle: Path, work: Path, sizes: Sizes, processes: int, rounds: int = ROUNDS
) -> Report:
    """Measure everything."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(model, work, sizes.steps)
    sizes = replace(sizes, steps=bench.steps)
    tried, rows = compare(bench, model, sizes, processes)
    chosen = {row.name: row.setting for row in rows}
    times = {
        "torch": torch_ratios(bench, chosen, rounds),
        "runtime": runtime_ratios(bench, chosen, bundle, rounds),
    }
    about = {
        "model": f"{model.name}, {bench.model.blocks} blocks",
        "command": "python -m benchmarks.guidance -o docs"
        f" --tried {sizes.tried} --images {sizes.images}",
        "versions": ", ".join(map(" ".join, versions().items())),
    }
    sections = page.sections(tried, rows, times, sizes, bench.model.blocks)
    return Report("Guidance methods at equal cost", about, sections)


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guidance", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"), help="folder [docs]")
    parser.add_argument("--work", type=Path, default=Path("build/guidance"), help="kept pictures")
    parser.add_argument("--tried", type=int, default=130, help="images of each setting [130]")
    parser.add_argument("--images", type=int, default=400, help="images of each method [400]")
    parser.add_argument("--processes", type=int, default=2, help="with one thread each [2]")
    args = parser.parse_args()
    found = report(MODEL, BUNDLE, args.work, Sizes(args.tried, args.images), args.processes)
    found.write(args.work)
    output = args.output / "reports" / "guidance"
    output.mkdir(parents=True, exist_ok=True)
    for name in ("report.md", "report.json"):
        shutil.copy(args.work / name, output)
    shutil.copytree(args.work / FIGURES, output / FIGURES, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
