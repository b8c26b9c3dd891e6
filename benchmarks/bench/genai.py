"""Convert a model for OpenVINO GenAI, and run its own CFG loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino
import openvino_genai
import openvino_tokenizers
import torch

from benchmarks.bench.models import Model
from benchmarks.bench.runtimes import Runtime
from benchmarks.bench.workload import CFG_SCALE, Array, Sample, Workload

PROMPTS = ["a dress", "dark boot"]  # negative, positive
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
    hints: dict[str, str] = EXACT,
    cached: bool = False,
) -> Runtime:
    """By its own clock over the steps of its loop; the noise is that of `workload`.

    Without `hints` it computes in its own default type. `cached` leaves its default on, which
    extrapolates some of the steps.
    """
    pipeline = openvino_genai.Text2ImagePipeline(folder)
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
