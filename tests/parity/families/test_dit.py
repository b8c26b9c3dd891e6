"""DiT-XL/2."""

from tests.parity.family import FamilyParity


class TestDiT(FamilyParity):
    name = "dit"
    test_image_to_image = None  # diffusers has no such pipeline; see test_epsilon.py
