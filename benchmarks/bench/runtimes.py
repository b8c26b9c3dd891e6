"""The runtimes that are compared: each is a function from a workload to its sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

import intaglio
from benchmarks.bench.models import PLANTED, Model
from benchmarks.bench.plain import PlainTransformer
from benchmarks.bench.workload import Predict, Sample, Workload, sample
from intaglio_export.adapters.base import Inputs

Runtime = Callable[[Workload], Sample]
FORKED, PREPACKED, DUAL = "intaglio forked", "intaglio forked, prepacked", "intaglio dual"
EAGER, COMPILED = "diffusers", "diffusers, torch.compile"
ORT, ORT_EACH = "ONNX Runtime, one batch", "ONNX Runtime, branch by branch"
OPENVINO = "OpenVINO"
OURS = (FORKED, PREPACKED, DUAL)
PEERS = (EAGER, COMPILED, ORT, ORT_EACH, OPENVINO)


class UnavailableError(Exception):
    """A peer that cannot run here, and why."""


def intaglio_runtime(
    bundle: Path,
    threads: int,
    *,
    prepack: bool = False,
    device: str = "cpu",
    precision: str = "float32",
    **options: Any,
) -> Runtime:
    """This runtime; its whole call counts but for text encoders and VAE.

    `options` of `Pipeline.generate` win over what all runtimes are given.
    """
    pipeline = intaglio.Pipeline.open(
        bundle, device=device, threads=threads, prepack=prepack, precision=precision
    )
    return lambda workload: sample_of(pipeline.generate(**generate_options(workload) | options))


def generate_options(workload: Workload) -> dict[str, Any]:
    """The workload as options of `Pipeline.generate`."""
    cfg_scale, dg_scale = workload.scales
    return {
        "prompt_embeds": prompt_embeds(workload),
        "cfg_window": (0.0, 1.0),
        "dg_window": (0.0, 1.0),
        "ma_keep": 0.0,
        "ma_channels": [PLANTED],
        "latents": workload.latents.numpy(),
        "batch": workload.images,
        "steps": workload.steps,
        "height": workload.pixels,
        "width": workload.pixels,
        "cfg_scale": cfg_scale,
        "dg_scale": dg_scale,
    }


def sample_of(generation: intaglio.Generation) -> Sample:
    """The time of a generation's loop and what it drew."""
    timings = generation.timings
    return Sample(timings.total - timings.vae, generation.latents, generation)


def prompt_embeds(workload: Workload) -> intaglio.PromptEmbeddings:
    """Both prompts as this runtime takes them."""
    negative, positive = (
        {role: value[row : row + 1].numpy() for role, value in workload.text.items()}
        for row in (0, 1)
    )
    return intaglio.PromptEmbeddings(
        positive["text"],
        pooled_prompt_embeds=positive["pooled"],
        negative_prompt_embeds=negative["text"],
        negative_pooled_prompt_embeds=negative["pooled"],
    )


@contextmanager
def torch_predict(model: Model, block: int, compiled: bool = False) -> Iterator[Predict]:
    """diffusers' transformer, eager or by torch.compile."""
    module = PlainTransformer(model.adapter, block, PLANTED).eval()
    roles = [spec.role for spec in model.adapter.inputs()]
    call: Any = torch.compile(module, dynamic=False) if compiled else module

    @torch.inference_mode()
    def predict(inputs: Inputs) -> torch.Tensor:
        prediction: torch.Tensor = call(*(inputs[role] for role in roles), inputs["factors"])
        return prediction

    try:
        yield predict
    finally:
        module.close()


def onnxruntime_predict(graph: Path, threads: int) -> Predict:
    """ONNX Runtime's Python package as it comes, on a plain graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Or its threads would go on spinning into the next runtime's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def predict(inputs: Inputs) -> torch.Tensor:
        [prediction] = session.run(None, {name: inputs[name].numpy() for name in names})
        return torch.from_numpy(prediction)

    return predict


def branch_by_branch(predict: Predict) -> Predict:
    """Each row in a call of its own."""

    def each(inputs: Inputs) -> torch.Tensor:
        rows = len(inputs["factors"])
        shared = {name: value for name, value in inputs.items() if name == "position"}
        return torch.cat(
            [
                predict({name: value[row : row + 1] for name, value in inputs.items()} | shared)
                for row in range(rows)
            ]
        )

    return each


def openvino_predict(graph: Path, threads: int, precision: str = "f32") -> Predict:
    """OpenVINO's CPU plugin on the same graph, computing in `precision`."""
    try:
        import openvino
    except ImportError as error:
        raise UnavailableError("openvino is not installed: pip install -e '.[bench]'") from error
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    model = openvino.Core().compile_model(graph, "CPU", settings)
    # A tensor may also bear the names of what is computed from it and equal to it.
    aliases = [value.get_names() for value in model.inputs]

    def predict(inputs: Inputs) -> torch.Tensor:
        result = model([inputs[(names & inputs.keys()).pop()].numpy() for names in aliases])
        return torch.from_numpy(result[0].copy())

    return predict


@contextmanager
def open_runtimes(
    model: Model, block: int, threads: int, names: tuple[str, ...] = (*OURS, *PEERS)
) -> Iterator[tuple[dict[str, Runtime], dict[str, str]]]:
    """The runtimes of `names` that work here, and of the others why not."""
    torch.set_num_threads(threads)
    runtimes: dict[str, Runtime] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        for name in names:
            try:
                runtimes[name] = _open(name, model, block, threads, stack)
            except Exception as error:  # of anybody's library: the others go on
                missing[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield runtimes, missing


def _open(name: str, model: Model, block: int, threads: int, stack: ExitStack) -> Runtime:
    if name in OURS:
        bundle = model.bundle("dual" if name == DUAL else "forked", block)
        return intaglio_runtime(bundle, threads, prepack=name == PREPACKED)
    if name in (EAGER, COMPILED):
        predict = stack.enter_context(torch_predict(model, block, name == COMPILED))
    elif name == OPENVINO:
        predict = openvino_predict(model.plain(block), threads)
    else:
        predict = onnxruntime_predict(model.plain(block), threads)
        if name == ORT_EACH:
            predict = branch_by_branch(predict)
    return lambda workload: sample(predict, workload)
