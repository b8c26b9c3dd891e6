"""Tests that compare a family's whole runs with diffusers' own float32 pipeline. They also build
its engines, which a machine without a GPU can build but not run.

`families/` has a file for each family. `CELLS` are the combinations of precision, layout and
guidance mode that CI measures; `make parity` measures `ALL_CELLS` and writes docs/parity.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import intaglio
from intaglio_export.errors import ExportError
from intaglio_export.options import LAYOUTS
from tests import bundles
from tests.bundles import BLOCK
from tests.conftest import open_on
from tests.export.engines import assert_op_follows_block, assert_whole, build, without_engines
from tests.families import FAMILIES, Family
from tests.parity.diffusers_runs import (
    CLASS,
    HEIGHT,
    IMAGES,
    NEGATIVE,
    PROMPT,
    SEED,
    STEPS,
    STRENGTH,
    Run,
    a_mask,
    guided_inpainting,
    guided_run,
    native_run,
    run_from_image,
    run_of_prompts,
    run_with_seeds,
)
from tests.parity.table import Cell, Table

MODES = {"baseline": (1.0, 0.0), "cfg": (4.0, 0.0), "dg": (1.0, 1.5), "cfg+dg": (4.0, 1.5)}
# The largest relative L2 error of the final latents that passes.
LIMITS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
ALL_CELLS = [(dtype, layout, mode) for dtype in LIMITS for layout in LAYOUTS for mode in MODES]
# Every mode runs once with the tight limit; each other precision runs in one layout, with D_c alone
# and with all three branches. tests/export/test_conditioning.py has the graphs of layout dual in
# float32 for every family, and test_runs.py has whole runs of them in every mode for one.
CELLS = [
    *(("float32", "forked", mode) for mode in MODES),
    *(("float16", "dual", mode) for mode in ("baseline", "cfg+dg")),
    *(("bfloat16", "forked", mode) for mode in ("baseline", "cfg+dg")),
]
SEEDS = [11, 4]
# Engines of families that attend with a mask in float16, which the builder cannot make.
ENGINES = [
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
]
Export = Callable[[str, str], intaglio.Pipeline]
Reference = Callable[[str], Run]


def relative(got: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.linalg.norm(got - expected.numpy()) / np.linalg.norm(expected.numpy()))


def assert_prompts_share_a_batch(
    name: str,
    bundle: Path,
    size: dict[str, int],
    prompts: tuple[str, str] = (PROMPT, NEGATIVE),
    cfg_scale: float = 1.0,
) -> None:
    """Two prompts of different lengths in one batch of ours, and in one of diffusers."""
    family = FAMILIES[name]
    expected = run_of_prompts(family.make(), family, list(prompts), SEEDS, cfg_scale)
    batch = intaglio.Batch(intaglio.Pipeline.open(bundle))
    options = size | {"steps": STEPS, "cfg_scale": cfg_scale, "dg_scale": 0.0}
    if cfg_scale > 1:
        options["negative_prompt"] = NEGATIVE
    places = [
        batch.add(**options, prompt=prompt, seeds=seed)
        for prompt, seed in zip(prompts, SEEDS, strict=True)
    ]
    done = {step.id: step for _ in range(STEPS) for step in batch.step()}
    got = np.concatenate([done[place].finish().latents for place in places])
    assert relative(got, expected.latents) < LIMITS["float32"]
    assert relative(got[::-1], expected.latents) > 0.1


class FamilyParity:
    """The tests of the family `name` of `FAMILIES`, on one device."""

    name: str
    device = "cpu"

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    @pytest.fixture(scope="class", autouse=True)
    def one_thread(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    @pytest.fixture(scope="class")
    def bundle(self) -> Export:
        """Return a function that opens the family's bundle in a layout and precision."""

        @cache
        def opened(layout: str, dtype: str) -> intaglio.Pipeline:
            return open_on(self.device, bundles.bundle(self.name, layout, dtype))

        return opened

    @pytest.fixture
    def size(self) -> dict[str, int]:
        """Return the size that diffusers draws, which need not be the bundle's default."""
        return {"height": HEIGHT, "width": self.family.width}

    @pytest.fixture(scope="class")
    def reference(self) -> Reference:
        """Return a function that runs diffusers in a mode, in float32."""
        pipeline = self.family.make()

        @cache
        def run(mode: str) -> Run:
            return guided_run(pipeline, self.family, *MODES[mode], BLOCK, [7])

        return run

    @pytest.fixture
    def condition(self) -> dict[str, Any]:
        """Return the options that say what to draw: diffusers' prompts or class."""
        if self.family.by_class:
            return {"class_label": CLASS}
        return {"prompt": PROMPT, "negative_prompt": NEGATIVE}

    # tests/conftest.py runs this for each of CELLS, or of ALL_CELLS to write a table.
    def test_run_equals_diffusers(
        self,
        dtype: str,
        layout: str,
        mode: str,
        bundle: Export,
        reference: Reference,
        condition: dict[str, Any],
        size: dict[str, int],
        parity_table: Table,
    ) -> None:
        pipeline, expected = bundle(layout, dtype), reference(mode)
        assert pipeline.bundle.massive_activations.channels == [7]
        cfg, dg = MODES[mode]
        got = pipeline.generate(
            **condition, **size, seeds=SEED, batch=IMAGES, steps=STEPS, cfg_scale=cfg, dg_scale=dg
        )
        error = relative(got.latents, expected.latents)
        assert error < LIMITS[dtype]
        parity_table.add(Cell(self.name, layout, mode, dtype), error)
        if dtype == "float32":
            images = np.stack([np.asarray(image, int) for image in got.images])
            assert np.abs(images - expected.images.astype(int)).max() <= 1

    def test_cfg_equals_the_pipelines_own(self, reference: Reference) -> None:
        """The formula of the reference is diffusers' own guidance."""
        own = native_run(self.family.make(), self.family, MODES["cfg"][0])
        assert relative(own.latents.numpy(), reference("cfg").latents) < 1e-4

    def test_modes_differ(self, reference: Reference) -> None:
        """The modes differ by more than the limits, so a cell that ran a wrong mode would fail."""
        runs = [reference(mode).latents for mode in MODES]
        for i, one in enumerate(runs):
            for other in runs[i + 1 :]:
                assert relative(one.numpy(), other) > 2 * max(LIMITS.values())

    def test_each_image_its_seed(
        self, bundle: Export, condition: dict[str, Any], size: dict[str, int]
    ) -> None:
        expected = run_with_seeds(self.family.make(), self.family, SEEDS)
        got = bundle("forked", "float32").generate(
            **condition, **size, seeds=SEEDS, steps=STEPS, cfg_scale=1.0, dg_scale=0.0
        )
        assert relative(got.latents, expected.latents) < LIMITS["float32"]

    def test_image_to_image(
        self, bundle: Export, condition: dict[str, Any], size: dict[str, int]
    ) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, self.family.width, 3), np.uint8)
        picture = Image.fromarray(noise)
        expected = run_from_image(self.family.make(), self.family, picture, SEEDS)
        got = bundle("forked", "float32").generate(
            **condition,
            **size,
            image=picture,
            strength=STRENGTH,
            seeds=SEEDS,
            steps=STEPS,
            cfg_scale=1.0,
            dg_scale=0.0,
        )
        assert relative(got.latents, expected.latents) < LIMITS["float32"]

    def test_inpainting(
        self, bundle: Export, condition: dict[str, Any], size: dict[str, int]
    ) -> None:
        """With CFG and DG, whose D_m suppresses channels in the mask only."""
        noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, self.family.width, 3), np.uint8)
        picture, mask = Image.fromarray(noise), a_mask(HEIGHT, self.family.width)
        cfg, dg = MODES["cfg+dg"]
        pipeline = bundle("forked", "float32")
        expected = guided_inpainting(
            self.family.make(), self.family, picture, mask, SEEDS, cfg, dg, BLOCK, [7],
            pipeline.bundle.size_multiple,
        )  # fmt: skip
        arguments = condition | size | {"image": picture, "strength": STRENGTH, "seeds": SEEDS}
        arguments |= {"steps": STEPS, "cfg_scale": cfg, "dg_scale": dg}
        got = pipeline.generate(**arguments, mask=mask)
        assert relative(got.latents, expected) < LIMITS["float32"]
        everywhere = pipeline.generate(**arguments, mask=mask, ma_tokens=np.full_like(mask, 255))
        assert relative(everywhere.latents, expected) > 10 * LIMITS["float32"]

    @pytest.mark.exports
    @pytest.mark.parametrize(("layout", "dtype"), [("forked", "float32"), ("dual", "float16")])
    def test_engines(self, layout: str, dtype: str, tmp_path: Path) -> None:
        path = without_engines(bundles.bundle(self.name, layout, dtype), tmp_path / "bundle")
        engines = assert_whole(path, build(path)[0].folder)
        reported, op = ("forked", "forked") if layout == "forked" else ("base", "degraded")
        entry = engines[f"transformer/{reported}.onnx"]
        blocks = [block["dtype"] for block in entry["residual"]]
        assert blocks == ["float32"] * (len(blocks) - 1) + ["fused"]
        assert engines[f"transformer/{op}.onnx"]["ma_suppress"]["fused"]
        if layout == "forked":
            assert_op_follows_block(path, len(blocks), BLOCK)
