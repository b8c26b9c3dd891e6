"""FLUX.2-dev: distilled guidance, and prompts that are padded on the left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

import intaglio
from intaglio import _core
from intaglio_export.bundle.tokenizer_tables import FILE_NAME
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from tests.families import flux2

GUIDANCE, STEPS, SEED, LENGTH = 2.5, 3, 5, 152
SIZE = {"height": 36, "width": 44}
# [IMG] is taken out, and what is left of the third is too long.
PROMPTS = ("a [IMG] boot", "the dark boot and THE rest\n  ", "", "a boot [IMG] " * 40)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    made = flux2.make_dev()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def bundle(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported from a folder as it is published, where the tokenizer is a processor."""
    work = tmp_path_factory.mktemp("dev")
    pipeline.save_pretrained(work / "model")
    index = json.loads((work / "model" / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PixtralProcessor"]
    (work / "model" / "model_index.json").write_text(json.dumps(index))
    (work / "model" / "settings.json").write_text(json.dumps({"max_sequence_length": LENGTH}))
    export_bundle(ExportRequest(work / "model", work / "bundle", block=2, channels="7"))
    return work / "bundle"


def draw(pipeline: Any, **prompt: Any) -> np.ndarray:
    drawn: list[np.ndarray] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        drawn.append(tensors["latents"].numpy())
        return {}

    pipeline(
        **prompt,
        max_sequence_length=LENGTH,
        guidance_scale=GUIDANCE,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED),
        callback_on_step_end=keep,
        **SIZE,
    )
    return drawn[-1]


def differ(ours: intaglio.Pipeline, expected: np.ndarray, **options: Any) -> float:
    options = {"distilled_guidance": GUIDANCE} | options
    got = ours.generate(**options, **SIZE, seeds=SEED, steps=STEPS, cfg_scale=1.0, dg_scale=0.0)
    return float(np.linalg.norm(got.latents - expected) / np.linalg.norm(expected))


@pytest.mark.exports
def test_runs_equal_diffusers(pipeline: Any, bundle: Path, tmp_path: Path) -> None:
    ours = intaglio.Pipeline.open(bundle, threads=1)
    assert ours.bundle.defaults.distilled_guidance == 4.0
    drawn = [draw(pipeline, prompt=prompt) for prompt in PROMPTS[:2]]
    for prompt, expected in zip(PROMPTS, drawn, strict=False):
        assert differ(ours, expected, prompt=prompt) < 1e-4
        assert differ(ours, expected, prompt=prompt, distilled_guidance=4.0) > 1e-4
    assert differ(ours, drawn[1], prompt=PROMPTS[0]) > 1e-3
    embeds = torch.randn(1, 24, flux2.TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"prompt_embeds": embeds}, tmp_path / "prompt.safetensors")
    expected = draw(pipeline, prompt_embeds=embeds)
    assert differ(ours, expected, prompt_embeds=tmp_path / "prompt.safetensors") < 1e-4


@pytest.mark.exports
def test_prompts_are_encoded_as_the_pipeline_does(pipeline: Any, bundle: Path) -> None:
    """Padding too, which attends to nothing: in the graph and in its decomposed form."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    (encoder,) = manifest["prompt"]["encoders"].values()
    tokenizer = _core.load_tokenizer(bundle / encoder["tokenizer"])
    assert Path(encoder["tokenizer"]).name == FILE_NAME
    files = [path for path in (bundle / "text_encoder").iterdir() if path.suffix == ".onnx"]
    assert len(files) > 1
    for prompt in PROMPTS:
        tokens = tokenizer.encode(prompt, LENGTH)
        mask = np.zeros((1, LENGTH), np.float32)
        mask[0, tokens.begin : tokens.begin + tokens.used] = 1.0
        expected = pipeline.encode_prompt(prompt, max_sequence_length=LENGTH)[0].detach().numpy()
        for file in files:
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            feeds = dict(zip(("ids", "mask"), (np.array([tokens.ids]), mask), strict=True))
            names = [tensor.name for tensor in session.get_inputs()]
            (got,) = session.run(None, dict(zip(names, feeds.values(), strict=True)))
            errors = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
            assert errors.max() < 1e-4, (prompt, file.name)
    assert tokens.truncated
    assert tokens.begin == 0
