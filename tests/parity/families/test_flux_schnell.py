"""FLUX.1-schnell."""

from tests.parity.family import FamilyParity


class TestFluxSchnell(FamilyParity):
    name = "flux-schnell"
