"""PixArt-Sigma."""

from tests.parity.family import FamilyParity


class TestPixArtSigma(FamilyParity):
    name = "pixart-sigma"
    test_image_to_image = None  # diffusers has no such pipeline; see test_epsilon.py
