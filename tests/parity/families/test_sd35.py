"""Stable Diffusion 3.5."""

from tests.parity.family import FamilyParity


class TestSD35(FamilyParity):
    name = "sd3.5"
