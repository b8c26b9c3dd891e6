"""The CSV files that training writes, and the training curve of the model card."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path


def read(path: Path) -> dict[str, list[float]]:
    """Read the columns of the CSV that training writes: step, loss, learning_rate, seconds."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def start(path: Path, columns: list[str], step: int) -> None:
    """Begin a CSV file whose first column is the step, or drop the rows after `step`.

    Such rows come from a run that was killed before it saved.
    """
    rows = path.read_text().splitlines()[1:] if path.exists() else []
    kept = [row for row in rows if int(row.split(",")[0]) <= step]
    path.write_text("\n".join([",".join(columns), *kept]) + "\n")


def append(path: Path, rows: list[list[float | str]]) -> None:
    """Append rows to a CSV file."""
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def draw(source: Path, target: Path) -> None:
    """Draw a small PNG of the loss over steps, on a logarithmic scale, with a running mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = read(source)
    smooth, mean = [], columns["loss"][0]
    for loss in columns["loss"]:
        mean += 0.1 * (loss - mean)
        smooth.append(mean)
    figure, axes = pyplot.subplots(figsize=(5.0, 2.8), dpi=90)
    axes.plot(columns["step"], columns["loss"], color="0.8", linewidth=0.6, label="20 steps")
    axes.plot(columns["step"], smooth, color="tab:blue", linewidth=1.4, label="running mean")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("rectified-flow loss")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.curve", description=__doc__)
    p.add_argument("source", type=Path, help="curve.csv in the working folder of a training run")
    p.add_argument("target", type=Path, help="PNG to write")
    args = p.parse_args(argv)
    if not args.source.is_file():
        print(f"error: {args.source} does not exist: train first", file=sys.stderr)
        return 3
    draw(args.source, args.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
