"""FLUX.2 klein base. The distilled model differs in its defaults only."""

from tests import bundles
from tests.parity.family import FamilyParity, assert_prompts_share_a_batch


class TestFlux2Klein(FamilyParity):
    name = "flux2-klein"

    test_image_to_image = test_inpainting = None  # diffusers has no such pipeline

    def test_prompts_of_different_lengths(self, size: dict[str, int]) -> None:
        assert_prompts_share_a_batch(self.name, bundles.bundle(self.name), size)
