"""Compare loops as people have them: with the defaults, caches and types of each.

    pip install -e '.[bench,openvino]' -c constraints.txt openvino-genai
    python -m benchmarks.bench.shipped -o docs

Each is compared with the exact float32 run of its own loop, in time and in the final latents. The
command writes its tables into a section of docs/performance.md.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from benchmarks.bench.document import section_parser, write_section
from benchmarks.bench.genai import genai_runtime, prepare
from benchmarks.bench.measuring import interleave, ratio, relative, seconds
from benchmarks.bench.models import Model, models
from benchmarks.bench.openvino_device import process_runtime
from benchmarks.bench.page import table
from benchmarks.bench.runtimes import FORKED, Runtime, intaglio_runtime
from benchmarks.bench.workload import Sample, Workload

STEPS = 28
ROUNDS = {"mid-sd3": 3, "fashion-sd3": 9}
INSTRUCTIONS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx2")
# Like GenAI's default, which runs the first 6 and the last 2 steps, and every third in between.
SKIPPING: dict[str, Any] = {"skip_interval": 3, "skip_window": (0.2, 0.92)}
GENAI: dict[str, dict[str, Any]] = {
    "OpenVINO GenAI, float32": {},
    "OpenVINO GenAI, float32, TaylorSeer": {"cached": True},
    "OpenVINO GenAI, its type": {"hints": {}},
    "OpenVINO GenAI as shipped": {"hints": {}, "cached": True},
}
# Its pipelines for SD3 take none of its caches.
DIFFUSERS = {"diffusers as shipped": torch.float32, "diffusers, bfloat16": torch.bfloat16}
PREPACKED = f"{FORKED}, prepacked"
OPENVINO = {  # by precision
    "float32": f"{FORKED}, OpenVINO",
    "bfloat16": f"{FORKED}, OpenVINO, bfloat16",
}


def diffusers_runtime(folder: Path, dtype: torch.dtype) -> Runtime:
    """diffusers' own pipeline from prompt embeddings to final latents, with CFG."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, torch_dtype=dtype
    )
    pipeline.set_progress_bar_config(disable=True)

    def run(workload: Workload) -> Sample:
        negative, positive = (
            {role: value[row : row + 1].to(dtype) for role, value in workload.text.items()}
            for row in (0, 1)
        )
        began = time.perf_counter()
        latents = pipeline(
            prompt_embeds=positive["text"],
            pooled_prompt_embeds=positive["pooled"],
            negative_prompt_embeds=negative["text"],
            negative_pooled_prompt_embeds=negative["pooled"],
            latents=workload.latents.to(dtype),
            height=workload.pixels,
            width=workload.pixels,
            num_inference_steps=workload.steps,
            guidance_scale=workload.scales[0],
            output_type="latent",
        ).images
        return Sample(time.perf_counter() - began, latents.float().numpy())

    return run


def instructions() -> str:
    """The processor's instructions that decide these figures, as Linux names them."""
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return ", ".join(name for name in INSTRUCTIONS if name in flags) or "none"


def ours(
    bundle: Path, threads: int, options: dict[str, Any], stack: ExitStack
) -> dict[str, Runtime]:
    """Intaglio's runtimes, which all draw with `options`."""
    found = {
        FORKED: intaglio_runtime(bundle, threads, **options),
        PREPACKED: intaglio_runtime(bundle, threads, prepack=True, **options),
    }
    for precision, name in OPENVINO.items():
        process = process_runtime(bundle, threads, precision, options)
        found[name] = stack.enter_context(process)
    return found


def runtimes(
    model: Model, threads: int, stack: ExitStack
) -> tuple[dict[str, tuple[Runtime, Workload]], dict[str, str]]:
    """All runs by name, and of each the exact run that it is compared with."""
    torch.set_num_threads(threads)
    folder, workload = prepare(model, STEPS)
    bundle = model.bundle("forked", model.blocks // 2)
    guided = workload.with_(mode="cfg+dg")
    object.__setattr__(guided, "text", workload.text)
    runs: dict[str, tuple[Runtime, Workload]] = {}
    exact: dict[str, str] = {}
    for name, how in GENAI.items():
        runs[name] = genai_runtime(folder, workload, threads, **how), workload
        exact[name] = next(iter(GENAI))
    for name, dtype in DIFFUSERS.items():
        runs[name] = diffusers_runtime(model.source, dtype), workload
        exact[name] = next(iter(DIFFUSERS))
    for skips, options in (("", dict[str, Any]()), (", skipping", SKIPPING)):
        for name, runtime in ours(bundle, threads, options, stack).items():
            for mode, work in (("CFG", workload), ("CFG+DG", guided)):
                full = f"{mode}: {name}{skips}"
                runs[full] = runtime, work
                exact[full] = f"{mode}: {FORKED}"
    return runs, exact


def measure(model: Model, rounds: int, threads: int) -> str:
    """The table of a model."""
    with ExitStack() as stack:
        runs, exact = runtimes(model, threads, stack)
        samples = interleave(runs, rounds)
    rows = []
    for name, of in samples.items():
        span = "{median:.2f} [{low:.2f}, {high:.2f}]".format(**ratio(of, samples[f"CFG: {FORKED}"]))
        error = relative(of[-1].latents, samples[exact[name]][-1].latents)
        shown = "" if exact[name] == name else f"{error:.1e}"
        rows.append([name, f"{1000 * median(seconds(of)) / STEPS:.4g}", span, shown])
    heads = ["loop", "ms per step", f"time / CFG: {FORKED}", "relative L2 from its exact run"]
    return table(heads, rows)


def main() -> None:
    """Measure, and write the section."""
    args = section_parser("benchmarks.bench.shipped", __doc__.split("\n")[0]).parse_args()
    known = models(args.work)
    parts = [
        f"`python -m benchmarks.bench.shipped -o docs` measured these figures on {date.today()} on"
        f" {os.cpu_count()} cores with {instructions()}: {STEPS} steps, {args.threads} threads,"
        " one image, and every loop once a round. A time is that of the loop, without text encoders"
        " and VAE. *Its type* is the type that OpenVINO chooses for the processor. TaylorSeer and"
        " skipping run the first 6 steps, every third, and the last 2. diffusers' pipeline for SD3"
        " takes none of diffusers' caches.",
    ]
    for name, rounds in ROUNDS.items():
        parts += [f"{name}, {rounds} rounds:", measure(known[name], rounds, args.threads)]
        write_section(args.output / "performance.md", "shipped", "\n\n".join(parts))


if __name__ == "__main__":
    main()
