"""Compare OpenVINO GenAI's own CFG loop with Intaglio's, for docs/performance.md.

    pip install -e '.[bench]' openvino-genai==2026.4.1.0
    python -m benchmarks.bench.sanity mid-sd3 2 9 2  # steps, rounds, threads
    python -m benchmarks.bench.sanity fashion-sd3 8 31 1

The first run of a model writes its folder for GenAI, laid out as optimum-intel lays it out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

import openvino
import openvino_genai
import openvino_tokenizers
import torch

from benchmarks.bench.measuring import check_same, interleave, ratio, seconds
from benchmarks.bench.models import Model, models
from benchmarks.bench.page import table
from benchmarks.bench.runtimes import FORKED, Runtime, intaglio_runtime
from benchmarks.bench.workload import CFG_SCALE, Array, Sample, Workload

PROMPTS = ["a dress", "dark boot"]  # negative, positive
GENAI = {"OpenVINO GenAI": False, "OpenVINO GenAI, shapes fixed": True}
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


class _Call(torch.nn.Module):
    """`part` called with inputs of `names`; gives `results` of its output, tuples unrolled."""

    def __init__(self, part: Any, names: list[str], results: list[str]) -> None:
        super().__init__()
        self.part, self.names, self.results = part, names, results

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.part(**dict(zip(self.names, inputs, strict=True)))
        found = (getattr(output, name) for name in self.results)
        return tuple(t for value in found for t in (value if type(value) is tuple else (value,)))


@torch.no_grad()
def _save(folder: Path, call: _Call, config: Any, *inputs: torch.Tensor) -> None:
    model = openvino.convert_model(call.eval(), example_input=inputs)
    for value, name in zip(model.inputs, call.names, strict=True):
        value.get_tensor().set_names({name})
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    config.save_pretrained(folder)


def convert(pipeline: Any, folder: Path) -> None:
    """Write a StableDiffusion3Pipeline of two CLIPs for GenAI."""
    transformer, vae, length = pipeline.transformer, pipeline.vae, pipeline.tokenizer_max_length
    config, ids = transformer.config, torch.zeros(2, length, dtype=torch.int64)
    for end in ("", "_2"):
        encoder, tokenizer = (getattr(pipeline, of + end) for of in ("text_encoder", "tokenizer"))
        encoder.config.output_hidden_states = True
        call = _Call(encoder, ["input_ids"], ["text_embeds", "last_hidden_state", "hidden_states"])
        _save(folder / f"text_encoder{end}", call, encoder.config, ids)
        words = openvino_tokenizers.convert_tokenizer(tokenizer)
        openvino.save_model(words, folder / f"tokenizer{end}/openvino_tokenizer.xml")
    sizes = (config.in_channels, 16, 16), (2 * length, config.joint_attention_dim)
    latents, text, pooled = (torch.zeros(2, *s) for s in (*sizes, (config.pooled_projection_dim,)))
    names = ["hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"]
    call, inputs = _Call(transformer, names, ["sample"]), (latents, torch.ones(1), text, pooled)
    _save(folder / "transformer", call, transformer, *inputs)
    vae.forward = vae.decode
    _save(folder / "vae_decoder", _Call(vae, ["z"], ["sample"]), vae, latents)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.save_config(folder)  # last: model_index.json tells that all is there


def genai_runtime(
    folder: Path,
    workload: Workload,
    threads: int,
    *,
    fixed: bool = False,
    hints: dict[str, str] = EXACT,
    cached: bool = False,
) -> Runtime:
    """By its own clock over the steps of its loop; the noise is that of `workload`.

    Without `hints` it computes in its own default type. `cached` leaves its default on, which
    extrapolates some of the steps.
    """
    pipeline = openvino_genai.Text2ImagePipeline(folder)
    if fixed:
        pipeline.reshape(1, workload.pixels, workload.pixels, CFG_SCALE)
    pipeline.compile("CPU", INFERENCE_NUM_THREADS=threads, ENABLE_CPU_PINNING=False, **hints)
    latents: list[Array] = []
    config = pipeline.get_generation_config()
    if not cached:
        config.taylorseer_config = None
    pipeline.set_generation_config(config)
    given: dict[str, Any] = {"negative_prompt": PROMPTS[0], "num_inference_steps": workload.steps}
    given |= {"height": workload.pixels, "width": workload.pixels, "guidance_scale": CFG_SCALE}

    def run(_: Workload) -> Sample:
        keep = {"callback": lambda step, steps, latent: latents.append(latent.data.copy())}
        given["generator"] = openvino_genai.TorchGenerator(0)
        pipeline.generate(PROMPTS[1], **given, **({} if latents else keep))
        raw = pipeline.get_performance_metrics().raw_metrics
        assert cached or len(raw.transformer_inference_durations) == workload.steps
        return Sample(sum(raw.iteration_durations) / 1e6, latents[-1])

    return run


def prepare(model: Model, steps: int) -> tuple[Path, Workload]:
    """The folder for GenAI, written where there is none, and the run that all make."""
    text = model.adapter.encode_prompts(PROMPTS, model.adapter.pipeline.tokenizer_max_length)
    workload = Workload(model.adapter, model.tokens, text["text"].shape[1], 1, steps, "cfg")
    object.__setattr__(workload, "text", text)
    if not (model.files / "genai/model_index.json").exists():
        convert(model.adapter.pipeline, model.files / "genai")
    return model.files / "genai", workload


def measure(model: Model, steps: int, rounds: int, threads: int) -> str:
    """The table of a model."""
    folder, workload = prepare(model, steps)
    runtimes = {FORKED: intaglio_runtime(model.bundle("forked", model.blocks // 2), threads)}
    for name, fixed in GENAI.items():
        runtimes[name] = genai_runtime(folder, workload, threads, fixed=fixed)
    samples = interleave({name: (run, workload) for name, run in runtimes.items()}, rounds)
    errors, rows = check_same(samples, FORKED), []
    for name, of in samples.items():
        span = "{median:.2f} [{low:.2f}, {high:.2f}]".format(**ratio(of, samples[FORKED]))
        rows.append([name, f"{median(seconds(of)) / steps:.4g}", span, f"{errors[name]:.0e}"])
    return table(["CFG loop", "seconds per step", "time / forked", "relative L2"], rows)


if __name__ == "__main__":
    print(measure(models(Path("build/bench"))[sys.argv[1]], *map(int, sys.argv[2:])))
