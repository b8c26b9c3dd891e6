"""PixArt-Sigma."""

from tests.parity.family import FamilyParity


class TestPixArtSigma(FamilyParity):
    name = "pixart-sigma"
    # diffusers has no such pipelines; see test_epsilon.py
    test_image_to_image = test_inpainting = None
