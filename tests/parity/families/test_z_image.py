"""Z-Image."""

from tests.parity.family import FamilyParity


class TestZImage(FamilyParity):
    name = "z-image"
