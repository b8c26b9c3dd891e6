"""Krea 2: the base model, and in defaults and schedule the distilled one."""

import json
from pathlib import Path

import pytest
import torch

import intaglio
from intaglio_export.adapters.krea2 import Krea2Adapter
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from tests import bundles
from tests.families import FAMILIES, krea2
from tests.parity.diffusers_runs import HEIGHT, NEGATIVE, PROMPT
from tests.parity.family import ENGINES, FamilyParity, assert_prompts_share_a_batch, relative

LENGTH = 16


class TestKrea2(FamilyParity):
    name = "krea2"
    test_image_to_image = test_inpainting = None  # diffusers has no such pipelines

    @pytest.mark.exports
    @pytest.mark.parametrize(("layout", "dtype"), ENGINES)
    def test_engines(self, layout: str, dtype: str, tmp_path: Path) -> None:
        super().test_engines(layout, dtype, tmp_path)

    def test_prompts_of_different_lengths(self, size: dict[str, int]) -> None:
        assert_prompts_share_a_batch(self.name, bundles.bundle(self.name), size)


def test_embeddings_are_the_pipelines() -> None:
    """The pipeline pads before the end of its template, and the runtime after it."""
    pipeline = FAMILIES["krea2"].make()
    opened = intaglio.Pipeline.open(bundles.bundle("krea2"))
    for text in (PROMPT, "", " two  spaces\n", "<|im_end|>\n{}", "boot " * 40):
        with torch.no_grad():
            wanted, mask = pipeline.encode_prompt(text, max_sequence_length=LENGTH)
        got = opened.embed(text)
        used = int(mask.sum())
        assert got.prompt_attention_mask.sum() == used
        assert got.prompt_attention_mask[:, :used].all()
        assert relative(got.prompt_embeds[:, :used], wanted[mask].flatten(1)[None]) < 1e-5
    assert "reads (16)" in opened.embed("boot " * 40).notes[0]


@torch.no_grad()
def test_the_mask_of_a_prompt_reaches_its_fusion() -> None:
    """Padding that is not zeros changes nothing."""
    adapter = Krea2Adapter(FAMILIES["krea2"].make())
    inputs = adapter.encode_prompts([NEGATIVE], LENGTH)
    mask = inputs["text_mask"]
    used = int(mask.sum())
    assert used < LENGTH
    noisy = inputs["text"] + 10 * torch.randn(inputs["text"].shape) * (1 - mask)[..., None]
    projected = adapter.project(inputs["text"], mask)[:, :used]
    torch.testing.assert_close(adapter.project(noisy, mask)[:, :used], projected)
    unmasked = adapter.project(noisy, torch.ones_like(mask))[:, :used]
    assert (unmasked - projected).norm() > 1e-2 * projected.norm()


@pytest.mark.exports
def test_the_distilled_model_draws_as_its_pipeline_does(tmp_path: Path) -> None:
    """Its shift is the same for all sizes, and its defaults are the distilled ones."""
    pipeline = krea2.make_pipeline(distilled=True)
    pipeline.save_pretrained(source := tmp_path / "source")
    (source / "settings.json").write_text(json.dumps({"max_sequence_length": LENGTH}))
    export_bundle(ExportRequest(source, tmp_path / "bundle", block=1, channels="7"))
    opened = intaglio.Pipeline.open(tmp_path / "bundle")
    defaults = json.loads((tmp_path / "bundle" / "bundle.json").read_text("utf-8"))["defaults"]
    assert (defaults["steps"], defaults["cfg_scale"]) == (8, 1.0)
    pipeline.set_progress_bar_config(disable=True)
    for width in (48, 80):
        size = {"height": HEIGHT, "width": width}
        expected = pipeline(
            PROMPT, **size, num_inference_steps=3, guidance_scale=0.0, output_type="latent",
            max_sequence_length=LENGTH, generator=torch.Generator().manual_seed(1),
        ).images  # fmt: skip
        got = opened.generate(PROMPT, **size, steps=3, seeds=1, dg_scale=0.0)
        assert relative(got.latents, expected) < 1e-4
