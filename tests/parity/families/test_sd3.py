"""Stable Diffusion 3."""

from tests.parity.family import FamilyParity


class TestSD3(FamilyParity):
    name = "sd3"
