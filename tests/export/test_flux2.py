"""FLUX.2 klein: what its two models differ in, and how a prompt becomes tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from intaglio import _core
from intaglio_export.adapters.flux2 import Flux2KleinAdapter
from intaglio_export.bundle.tokenizer_tables import FILE_NAME, write_table
from intaglio_export.sources import open_source
from tests.byte_level import qwen3
from tests.families import flux2


@pytest.mark.parametrize(
    ("make", "steps", "cfg_scale"),
    [(flux2.make_base, 50, 4.0), (flux2.make_distilled, 4, 1.0)],
)
def test_only_the_base_model_has_guidance_by_default(
    tmp_path: Path, make: Any, steps: int, cfg_scale: float
) -> None:
    make().save_pretrained(tmp_path / "model")
    adapter = open_source(tmp_path / "model").adapter
    defaults = adapter.defaults()
    assert (defaults.steps, defaults.cfg_scale) == (steps, cfg_scale)
    assert adapter.distilled is (cfg_scale == 1.0)


@pytest.mark.parametrize("published", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_prompts_are_tokenized_as_the_pipeline_does(tmp_path: Path, published: bool) -> None:
    """With its chat template, padded and cut."""
    pipeline = flux2.make_base()
    if published:
        pipeline.tokenizer = qwen3()
    seen = []

    class Watching(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> None:
            seen.append((input_ids, attention_mask))
            raise StopIteration

    layout = Flux2KleinAdapter(pipeline).prompt(48)
    assert layout is not None
    encoder = layout.encoders["text_encoder"]
    write_table(pipeline.tokenizer, 48, tmp_path, template=encoder.template)
    ours = _core.load_tokenizer(tmp_path / FILE_NAME)
    prompts = ["", "a boot", "the dark boot and THE rest\n  ", "a boot " * 40]
    for prompt in prompts:
        with pytest.raises(StopIteration):
            pipeline._get_qwen3_prompt_embeds(
                Watching(), pipeline.tokenizer, prompt, max_sequence_length=48
            )
        ids, mask = seen[-1]
        tokens = ours.encode(prompt, 48)
        assert tokens.ids == ids[0].tolist()
        assert tokens.used == mask.sum()
    assert seen[-1][1].all()
