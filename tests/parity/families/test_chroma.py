"""Chroma."""

from typing import Any

import torch
from diffusers import ChromaTransformer2DModel

from intaglio_export.adapters.chroma import ChromaAdapter, approximator_inputs
from intaglio_export.adapters.packing import positions
from intaglio_export.networks.conditioning import condition
from intaglio_export.networks.forking import ForkedTransformer
from tests import bundles
from tests.families import FAMILIES
from tests.families.chroma import PLANTED
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


@torch.no_grad()
def test_channels_are_suppressed_in_image_tokens_of_a_single_stream_block() -> None:
    """Such a block has one sequence; the text in it stays what it is."""
    adapter = ChromaAdapter(FAMILIES["chroma"].make())
    transformer, block, text, tokens = adapter.transformer, 3, 5, 12
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "latent": torch.randn(1, tokens, 16, generator=generator),
        "text": torch.randn(1, text, 48, generator=generator),
        "text_mask": torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]),
        "timestep": torch.tensor([500.0]),
        "position": positions(3, 4),
    }

    def suppressed(first: int) -> torch.Tensor:
        def zero(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, first:, PLANTED] = 0.0
            return output

        handle = transformer.single_transformer_blocks[0].register_forward_hook(zero)
        try:
            return adapter.predict(inputs)
        finally:
            handle.remove()

    mask = torch.zeros(adapter.channels)
    mask[PLANTED] = 1.0
    keep = torch.stack([torch.ones(tokens), torch.zeros(tokens)])
    forked = ForkedTransformer(adapter, block)
    given = condition(adapter, inputs)
    source = torch.zeros(keep.shape, dtype=torch.int64)
    found = forked(*given, mask, torch.zeros_like(mask), torch.tensor([0, 0]), keep, source)
    torch.testing.assert_close(found[:1], adapter.predict(inputs))
    torch.testing.assert_close(found[1:], suppressed(text))
    assert (suppressed(text) - suppressed(0)).norm() > 1e-4 * found[1:].norm()
