"""Measure the time that skipped steps save, for docs/performance.md.

    python -m benchmarks.bench.skipping -o docs

The shipped model draws its own prompt with the default tolerance. The models of random weights
run every second step, whatever the distance.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import date
from typing import Any

import intaglio
from benchmarks.bench.document import section_parser, write_section
from benchmarks.bench.inexact import PROMPT
from benchmarks.bench.measuring import interleave, ratio, relative
from benchmarks.bench.models import Model, models
from benchmarks.bench.page import table
from benchmarks.bench.runtimes import FORKED, Runtime, intaglio_runtime
from benchmarks.bench.sections import SHIPPED, middle
from benchmarks.bench.workload import Workload

STEPS = 28
# Of the shipped model: that of its settings.json, and one of 20 evaluations.
SHIPPED_SKIPS = (
    [4, 6, 8, 10, 12, 13, 15, 16, 18, 19, 21, 22, 24, 26, 27],
    [9, 12, 14, 16, 18, 20, 23, 27],
)
ALWAYS = 1e9  # a tolerance that no distance reaches
RANDOM_STEPS = 12
EVERY_SECOND = list(range(4, RANDOM_STEPS, 2))


def schedules(model: Model) -> Iterator[tuple[int, dict[str, Any]]]:
    """The steps of a run, and the options that skip some of them."""
    if model.folder is None:
        yield RANDOM_STEPS, {"skip_steps": EVERY_SECOND, "skip_tolerance": ALWAYS}
        return
    for skipped in SHIPPED_SKIPS:
        yield STEPS, {"skip_steps": skipped}


def skip_in_runs_of(steps: int, plain: Runtime, skipping: Runtime) -> Runtime:
    """`skipping` in a run of so many steps, and `plain` in the warm-up, which has one."""
    return lambda workload: (skipping if workload.steps == steps else plain)(workload)


def measure(model: Model, threads: int, rounds: int) -> Iterator[list[str]]:
    """Rows of the table: one for each schedule of a model."""
    options: dict[str, Any] = {}
    if model.folder is None:
        bundle = model.bundle("forked", middle(model))
    else:
        bundle = SHIPPED / model.name
        embeds = intaglio.Pipeline.open(bundle, device="cpu").embed(PROMPT, "")
        options = {"prompt_embeds": embeds, "ma_channels": []}
    plain = intaglio_runtime(bundle, threads, **options)
    for steps, skips in schedules(model):
        work = Workload(model.adapter, model.tokens, model.text_tokens, steps=steps)
        run = skip_in_runs_of(steps, plain, intaglio_runtime(bundle, threads, **options, **skips))
        samples = interleave({FORKED: (plain, work), "skipping": (run, work)}, rounds)
        exact, skipped = samples[FORKED], samples["skipping"]
        evaluations = skipped[-1].seen.evaluations
        times = ratio(skipped, exact)
        yield [
            model.name,
            ",".join(map(str, skips["skip_steps"])),
            f"{evaluations} of {steps}",
            f"{evaluations / steps:.3f}",
            "{median:.3f} [{low:.3f}, {high:.3f}]".format(**times),
            f"{times['median'] * steps / evaluations - 1:+.1%}",
            f"{relative(skipped[-1].latents, exact[-1].latents):.1e}" if model.folder else "",
        ]


def main() -> None:
    """Measure, and write the section."""
    parser = section_parser("benchmarks.bench.skipping", __doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each pair of runs [5]")
    args = parser.parse_args()
    rows = [
        row
        for model in models(args.work).values()
        for row in measure(model, args.threads, args.rounds)
    ]
    heads = ["model", "skipped steps", "evaluations", "their share of the steps", "time / exact"]
    heads += ["time beyond that share", "relative L2 of this image"]
    text = (
        f"`python -m benchmarks.bench.skipping -o docs` measured these times on {date.today()} on"
        f" {os.cpu_count()} cores: CFG+DG, {args.threads} threads, {args.rounds} rounds, one image,"
        " without text encoders and VAE. The shipped model has its own prompt and the default"
        " tolerance; the others have random weights and no tolerance."
    )
    write_section(args.output / "performance.md", "skipping", f"{text}\n\n{table(heads, rows)}")


if __name__ == "__main__":
    main()
