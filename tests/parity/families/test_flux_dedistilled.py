"""FLUX.1-dev with its distillation undone."""

from tests.parity.family import FamilyParity


class TestFluxDedistilled(FamilyParity):
    name = "flux-dedistilled"
