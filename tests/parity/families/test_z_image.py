"""Z-Image."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from diffusers import ZImagePipeline

import intaglio
from tests import bundles
from tests.parity.diffusers_runs import IMAGES, NEGATIVE, PROMPT, SEED, STEPS, native_run
from tests.parity.family import (
    ENGINES,
    LIMITS,
    FamilyParity,
    assert_prompts_share_a_batch,
    relative,
)

# 47 and 16 tokens with the template, which the model fills up to 64 and 32.
PROMPTS = ("a photograph of the red dress and the dark shirt in the rest of it, 1999", "a boot")


class TestZImage(FamilyParity):
    name = "z-image"

    def test_two_prompts_of_different_lengths_in_one_batch(self, size: dict[str, int]) -> None:
        bundle = bundles.bundle(self.name)
        assert_prompts_share_a_batch(self.name, bundle, size, PROMPTS, cfg_scale=4.0)

    @pytest.mark.parametrize("limit", [0.5, 1.0])
    def test_cfg_normalization(
        self, limit: float, size: dict[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtime = intaglio.Pipeline.open(bundles.bundle(self.name), threads=1)

        def draw(**options: Any) -> Any:
            return runtime.generate(
                PROMPT, negative_prompt=NEGATIVE, seeds=SEED, batch=IMAGES, steps=STEPS,
                cfg_scale=4.0, dg_scale=0.0, **size, **options,
            ).latents  # fmt: skip

        call = partial(ZImagePipeline.__call__, cfg_normalization=limit)
        monkeypatch.setattr(ZImagePipeline, "__call__", lambda *args, **words: call(*args, **words))
        expected = native_run(self.family.make(), self.family, 4.0).latents
        assert relative(draw(guidance_normalization=limit), expected) < LIMITS["float32"]
        assert relative(draw(), expected) > 0.01

    @pytest.mark.exports
    @pytest.mark.parametrize(("layout", "dtype"), ENGINES)
    def test_engines(self, layout: str, dtype: str, tmp_path: Path) -> None:
        super().test_engines(layout, dtype, tmp_path)
