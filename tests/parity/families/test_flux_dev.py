"""FLUX.1-dev."""

from tests.parity.family import FamilyParity


class TestFluxDev(FamilyParity):
    name = "flux-dev"
