"""Qwen-Image."""

from tests.parity.family import FamilyParity


class TestQwenImage(FamilyParity):
    name = "qwen-image"
