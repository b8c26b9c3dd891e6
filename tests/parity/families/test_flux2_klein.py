"""FLUX.2 klein base. The distilled model differs in its defaults only."""

from typing import Any

import pytest
from PIL import Image

import intaglio
from tests import bundles
from tests.parity.family import Export, FamilyParity, assert_prompts_share_a_batch


class TestFlux2Klein(FamilyParity):
    name = "flux2-klein"

    def test_image_to_image(
        self, bundle: Export, condition: dict[str, Any], size: dict[str, int]
    ) -> None:
        """diffusers has no such pipeline: its image is a reference, which adds tokens."""
        image = Image.new("RGB", (size["width"], size["height"]))
        says = "has no VAE encoder, so it cannot start from a picture: leave image out, or take a"
        with pytest.raises(intaglio.InputError, match=says):
            bundle("forked", "float32").generate(**condition, **size, image=image)

    test_inpainting = None  # it starts from such an image

    def test_prompts_of_different_lengths(self, size: dict[str, int]) -> None:
        assert_prompts_share_a_batch(self.name, bundles.bundle(self.name), size)
