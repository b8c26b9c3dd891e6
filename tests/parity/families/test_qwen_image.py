"""Qwen-Image."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import intaglio
from tests import bundles
from tests.families import FAMILIES
from tests.parity.diffusers_runs import NEGATIVE, PROMPT, SEED, STEPS
from tests.parity.family import (
    IMAGES,
    LIMITS,
    MODES,
    FamilyParity,
    Reference,
    assert_prompts_share_a_batch,
    relative,
)

LENGTH = 16


class TestQwenImage(FamilyParity):
    name = "qwen-image"

    def test_prompts_of_different_lengths(self, size: dict[str, int]) -> None:
        assert_prompts_share_a_batch(self.name, bundles.bundle(self.name), size)

    @pytest.mark.exports
    def test_without_text_encoders(
        self, reference: Reference, size: dict[str, int], tmp_path: Path
    ) -> None:
        """Embeddings that diffusers' pipeline made draw what its prompts draw."""
        pipeline, tensors = FAMILIES[self.name].make(), {}
        with torch.no_grad():
            embeds, mask = pipeline.encode_prompt([PROMPT, NEGATIVE], max_sequence_length=LENGTH)
        for row, prefix in enumerate(("", "negative_")):
            tensors[f"{prefix}prompt_embeds"] = embeds[row : row + 1].clone()
            tensors[f"{prefix}prompt_attention_mask"] = mask[row : row + 1].clone()
        save_file(tensors, tmp_path / "prompt.safetensors")
        bare = intaglio.Pipeline.open(bundles.bundle(self.name, text_encoders="none"))
        cfg, dg = MODES["cfg+dg"]
        got = bare.generate(
            prompt_embeds=tmp_path / "prompt.safetensors",
            **size, seeds=SEED, batch=IMAGES, steps=STEPS, cfg_scale=cfg, dg_scale=dg,
        )  # fmt: skip
        assert relative(got.latents, reference("cfg+dg").latents) < LIMITS["float32"]
        with pytest.raises(intaglio.UsageError, match="has no text encoders"):
            bare.generate(PROMPT)


def test_embeddings_are_the_pipelines() -> None:
    """Also of prompts that are cut, that are empty, and that hold the template's own tokens."""
    pipeline = FAMILIES["qwen-image"].make()
    opened = intaglio.Pipeline.open(bundles.bundle("qwen-image"))
    for text in (PROMPT, "", " two  spaces\n", "<|im_end|>\n{}", "boot " * 40):
        with torch.no_grad():
            wanted, mask = pipeline.encode_prompt(text, max_sequence_length=LENGTH)
        got = opened.embed(text)
        used = wanted.shape[1]
        assert mask is None
        assert got.prompt_attention_mask.sum() == used
        assert got.prompt_attention_mask[:, :used].all()
        assert relative(got.prompt_embeds[:, :used], wanted) < 1e-5
    assert "reads (16)" in opened.embed("boot " * 40).notes[0]


def test_the_bundle_says_how_its_prompts_and_its_guidance_are_made() -> None:
    bundle = bundles.bundle("qwen-image")
    manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
    assert manifest["cfg_rescale"] == "token"
    assert manifest["schema_version"] == 3  # readers of schema 1 refuse it
    [encoder] = manifest["prompt"]["encoders"].values()
    pipeline = FAMILIES["qwen-image"].make()
    assert encoder["dropped"] == pipeline.prompt_template_encode_start_idx
    tables = json.loads((bundle / encoder["tokenizer"]).read_text("utf-8"))
    assert "{}".join(tables["template"]) == pipeline.prompt_template_encode
