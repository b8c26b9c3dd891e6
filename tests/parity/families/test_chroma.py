"""Chroma."""

import torch
from diffusers import ChromaTransformer2DModel

from intaglio_export.adapters.chroma import approximator_inputs
from tests import bundles
from tests.families import FAMILIES
from tests.parity.family import FamilyParity, assert_prompts_share_a_batch


class TestChroma(FamilyParity):
    name = "chroma"

    def test_prompts_of_different_lengths(self, size: dict[str, int]) -> None:
        assert_prompts_share_a_batch(self.name, bundles.bundle(self.name), size)


def test_the_approximator_gets_what_the_models_own_code_gives_it() -> None:
    transformer: ChromaTransformer2DModel = FAMILIES["chroma"].make().transformer
    embed = transformer.time_text_embed
    timestep = torch.tensor([1000.0, 312.5, 0.0])
    torch.testing.assert_close(
        approximator_inputs(embed)(timestep), embed(timestep), rtol=0, atol=0
    )
