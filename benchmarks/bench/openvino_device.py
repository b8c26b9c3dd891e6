"""OpenVINO as Intaglio's device, beside OpenVINO's own runtime that computes in the same type."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

from benchmarks.bench.measuring import interleave, ratio, relative, seconds, spread
from benchmarks.bench.models import ROOT, Model
from benchmarks.bench.runtimes import (
    FORKED,
    OPENVINO,
    Runtime,
    generate_options,
    intaglio_runtime,
    openvino_predict,
    sample_of,
)
from benchmarks.bench.sections import Effort, middle, workload_of
from benchmarks.bench.workload import Sample, Workload, sample

LIBRARIES = ROOT / "build/deps/onnxruntime-openvino"  # of `make bench`
TYPES = {"float32": "f32", "bfloat16": "bf16"}


def openvino_device(model: Model, effort: Effort) -> list[dict[str, Any]]:
    """CFG+DG on OpenVINO, in each type: the times, also relative to Intaglio's, and the errors.

    The errors are relative to the latents of Intaglio on its CPU device.
    """
    block = middle(model)
    bundle = model.bundle("forked", block)
    base = workload_of(model, effort)
    with ExitStack() as stack:
        runtimes: dict[str, Runtime] = {FORKED: intaglio_runtime(bundle, effort.threads)}
        for name, hint in TYPES.items():
            ours = stack.enter_context(process_runtime(bundle, effort.threads, name))
            runtimes[f"intaglio, openvino, {name}"] = ours
            predict = openvino_predict(model.plain(block), effort.threads, hint)
            runtimes[f"{OPENVINO}, {name}"] = lambda workload, run=predict: sample(run, workload)
        print(f"{model.name}: comparing {', '.join(runtimes)}", flush=True)
        samples = interleave({n: (run, base) for n, run in runtimes.items()}, effort.rounds)
    expected = samples[FORKED][-1].latents
    return [
        {
            "name": name,
            "seconds_per_step": spread([s / effort.steps for s in seconds(of)]),
            "ratio_to_forked": ratio(of, samples[FORKED]),
            "relative_l2": relative(of[-1].latents, expected),
        }
        for name, of in samples.items()
    ]


@contextmanager
def process_runtime(
    bundle: Path, threads: int, precision: str, options: dict[str, Any] | None = None
) -> Iterator[Runtime]:
    """Intaglio on OpenVINO in a process of its own, which holds another build of ONNX Runtime.

    `options` of `Pipeline.generate` win over those of the workload.
    """
    [library] = LIBRARIES.glob("libonnxruntime.so.*")
    words = ["benchmarks.bench.openvino_process", bundle, library, threads, precision]
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, words)], cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout, process.stdin

    def run(workload: Workload) -> Sample:
        pickle.dump(generate_options(workload) | (options or {}), sink)
        sink.flush()
        return sample_of(pickle.load(source))

    try:
        yield run
    finally:
        sink.close()
        process.wait()
