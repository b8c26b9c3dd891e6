"""FLUX.2 klein."""

from tests.parity.family import FamilyParity


class TestFlux2Klein(FamilyParity):
    name = "flux2-klein"
    test_image_to_image = None  # its image is a reference, which adds tokens
