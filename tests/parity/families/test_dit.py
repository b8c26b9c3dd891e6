"""DiT-XL/2."""

from tests.parity.family import FamilyParity


class TestDiT(FamilyParity):
    name = "dit"
    # diffusers has no such pipelines; see test_epsilon.py
    test_image_to_image = test_inpainting = None
