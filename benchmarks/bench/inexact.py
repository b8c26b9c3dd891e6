"""What is not exact, beside what is: quantised weights and encoders, and reused differences."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import intaglio
from benchmarks.bench.measuring import interleave, ratio, relative
from benchmarks.bench.models import PLANTED, Model
from benchmarks.bench.runtimes import FORKED, Runtime, intaglio_runtime
from benchmarks.bench.sections import SHIPPED, Effort, middle, workload_of
from benchmarks.bench.workload import Sample, Workload
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest, QuantizeEncoders
from intaglio_export.passes.quantize_weights import WEIGHT_BITS

PROMPT = "an ankle boot"
# Schedules for the shipped model (docs/performance.md).
FASTER_STEPS = 28
FASTER: dict[str, dict[str, Any]] = {
    "reuse within 3 %": {"reuse_interval": 2, "reuse_window": (0.375, 0.8393)},
    "reuse at CFG's cost": {"reuse_interval": 3, "reuse_window": (0.3036, 0.9107)},
}


def inexact(model: Model, effort: Effort) -> list[dict[str, Any]]:
    """Of each way: its time beside exact CFG+DG, its weights, its error in the final latents.

    The shipped model is given a prompt and the manifest's channels, and the schedules are for it. A
    model of random weights is given prompt embeddings.
    """
    shipped = SHIPPED / model.name
    exact = shipped if shipped.is_dir() else model.bundle("forked", middle(model))
    options: dict[str, Any] = {}
    if shipped.is_dir():
        embeds = intaglio.Pipeline.open(shipped, device="cpu").embed(PROMPT, "")
        options = {"prompt_embeds": embeds, "ma_channels": []}
    bundles = {FORKED: exact} | {scheme: quantised(model, scheme) for scheme in WEIGHT_BITS}
    runs = {
        name: intaglio_runtime(path, effort.threads, **options) for name, path in bundles.items()
    }
    base = workload_of(model, effort)
    rows = _compare(runs, base, effort)
    for row in rows:
        row["weights_bytes"] = _weights(bundles[row["name"]])
    if shipped.is_dir():
        runs = {FORKED: runs[FORKED]}
        for name, given in FASTER.items():
            runs[name] = intaglio_runtime(exact, effort.threads, **options, **given)
        rows += _compare(runs, base.with_(steps=FASTER_STEPS), effort)[1:]
    return rows


def encoders(model: Model, effort: Effort) -> list[dict[str, Any]]:
    """Of each precision of the text encoders: the time to encode a prompt and an empty one beside
    that in float32, their weights, and the error of the prompt's embeddings."""
    exact = SHIPPED / model.name
    bundles = {FORKED: exact if exact.is_dir() else with_encoders(model)}
    bundles |= {scheme: with_encoders(model, scheme) for scheme in QuantizeEncoders}
    return compare_encoders(bundles, effort)


def compare_encoders(bundles: dict[str, Path], effort: Effort) -> list[dict[str, Any]]:
    """Rows of `encoders`, of bundles of which one is called FORKED."""
    runs = {name: _encoding(path, effort.threads) for name, path in bundles.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for turn in range(-1, max(1, effort.rounds - 2)):  # the first one warms up
        for name, run in runs.items():
            taken = run()
            if turn >= 0:
                samples[name].append(taken)
    return [
        {
            "name": name,
            "ratio_to_forked": ratio(of, samples[FORKED]),
            "weights_bytes": _weights(bundles[name], "text_encoder*"),
            "relative_l2": relative(of[-1].latents, samples[FORKED][-1].latents),
        }
        for name, of in samples.items()
    ]


def _encoding(bundle: Path, threads: int) -> Callable[[], Sample]:
    """What encodes a prompt and an empty one; the sample has the embeddings in place of latents."""
    pipeline = intaglio.Pipeline.open(bundle, device="cpu", threads=threads)

    def encode() -> Sample:
        began = time.perf_counter()
        embeds = pipeline.embed(PROMPT, "")
        return Sample(time.perf_counter() - began, np.asarray(embeds.prompt_embeds))

    return encode


def with_encoders(model: Model, scheme: QuantizeEncoders | None = None) -> Path:
    """The model's bundle with its text encoders, kept like the others."""
    folder = model.files / f"encoders-{scheme or 'float32'}"
    if not folder.exists():
        print(f"exporting {model.name}, encoders {scheme or 'float32'}", flush=True)
        own: dict[str, Any] = {}
        if not model.folder:
            own = {"block": middle(model), "channels": str(PLANTED)}
        export_bundle(ExportRequest(model.source, folder, quantize_encoders=scheme, **own))
    return folder


def _compare(runs: dict[str, Runtime], workload: Workload, effort: Effort) -> list[dict[str, Any]]:
    samples = interleave(
        {name: (run, workload) for name, run in runs.items()}, max(1, effort.rounds - 2)
    )
    expected = samples[FORKED][-1].latents
    return [
        {
            "name": name,
            "steps": workload.steps,
            "ratio_to_forked": ratio(of, samples[FORKED]),
            "relative_l2": relative(of[-1].latents, expected),
        }
        for name, of in samples.items()
    ]


def quantised(model: Model, scheme: str) -> Path:
    """The model's bundle with its transformer's weights quantised, kept like the others."""
    folder = model.files / scheme
    if not folder.exists():
        print(f"exporting {model.name}, {scheme}", flush=True)
        own = {} if model.folder else {"block": middle(model), "channels": str(PLANTED)}
        export_bundle(
            ExportRequest(model.source, folder, text_encoders="none", quantize=scheme, **own)
        )
    return folder


def _weights(bundle: Path, parts: str = "transformer") -> int:
    """In bytes."""
    return sum(file.stat().st_size for file in bundle.glob(f"{parts}/*.data"))
