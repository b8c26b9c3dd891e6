"""Z-Image."""

from pathlib import Path

import pytest

from intaglio_export.errors import ExportError
from tests import bundles
from tests.parity.family import FamilyParity, assert_prompts_share_a_batch

# 47 and 16 tokens with the template, which the model fills up to 64 and 32.
PROMPTS = ("a photograph of the red dress and the dark shirt in the rest of it, 1999", "a boot")


class TestZImage(FamilyParity):
    name = "z-image"

    def test_two_prompts_of_different_lengths_in_one_batch(self, size: dict[str, int]) -> None:
        bundle = bundles.bundle(self.name)
        assert_prompts_share_a_batch(self.name, bundle, size, PROMPTS, cfg_scale=4.0)

    @pytest.mark.exports
    @pytest.mark.parametrize(
        ("layout", "dtype"),
        [
            ("forked", "float32"),
            pytest.param(
                "dual",
                "float16",
                marks=pytest.mark.xfail(
                    strict=True,
                    raises=ExportError,
                    reason="TensorRT-RTX 1.7.1: tactics_tiled_layout.cpp:2006:"
                    " CHECK(op->input_layouts().size() > idx) failed",
                ),
            ),
        ],
    )
    def test_engines(self, layout: str, dtype: str, tmp_path: Path) -> None:
        super().test_engines(layout, dtype, tmp_path)
