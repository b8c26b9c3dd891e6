"""Chroma."""

from tests.parity.family import FamilyParity


class TestChroma(FamilyParity):
    name = "chroma"
