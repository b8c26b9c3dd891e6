"""Qwen-Image."""

from tests.parity.family import FamilyParity


class TestQwenImage(FamilyParity):
    name = "qwen-image"
    # Its own guidance rescales the result to the norm of D_c, which is another formula.
    test_cfg_equals_the_pipelines_own = None
