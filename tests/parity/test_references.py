"""Whole runs with reference images: ours against diffusers' own pipelines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image

import intaglio
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from tests import bundles
from tests.bundles import BLOCK
from tests.families import FAMILIES, flux
from tests.families.parts import MAX_LENGTH
from tests.parity.diffusers_runs import (
    HEIGHT,
    IMAGES,
    NEGATIVE,
    PROMPT,
    SEED,
    STEPS,
    STRENGTH,
    Run,
    run_from_image,
    run_with_references,
)
from tests.parity.family import MODES, SEEDS, relative
from tests.python.test_batch import together

LIMIT = 1e-4
WIDTH = 48
SIZE = {"height": HEIGHT, "width": WIDTH}
UNIT = 4  # pixels along a side of a token
# (width, height); as in the real list, wide and high ones.
SIZES = [(24, 44), (28, 36), (32, 32), (36, 28), (44, 24)]
KLEIN = FAMILIES["flux2-klein"]
DEV = FAMILIES["flux-dev"]
# Without an area it draws a million pixels in the shape that is asked for.
KONTEXT = replace(DEV, call=DEV.call | {"max_area": HEIGHT * WIDTH})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return noise over large patches of colour."""
    random = np.random.default_rng(seed)
    patches = random.integers(0, 256, (3, 3, 3), np.uint8)
    large = Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)
    noise = random.integers(-40, 41, (height, width, 3))
    return Image.fromarray((np.asarray(large, int) + noise).clip(0, 255).astype(np.uint8))


def drawn_first(family: Any, height: int, width: int) -> Any:
    return replace(family, image_tokens=slice(height // UNIT * width // UNIT))


def draw(ours: intaglio.Pipeline, mode: str, **options: Any) -> intaglio.Generation:
    cfg, dg = MODES[mode]
    options = {"seeds": SEED, "batch": IMAGES, "steps": STEPS} | options
    return ours.generate(PROMPT, negative_prompt=NEGATIVE, cfg_scale=cfg, dg_scale=dg, **options)


def assert_equal(got: intaglio.Generation, expected: Run) -> None:
    assert relative(got.latents, expected.latents) < LIMIT
    images = np.stack([np.asarray(image, int) for image in got.images])
    assert np.abs(images - expected.images.astype(int)).max() <= 1


class TestKontext:
    """FLUX.1 Kontext, whose list of sizes is shorter here, since a token has fewer pixels."""

    @pytest.fixture(scope="class", autouse=True)
    def sizes(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", SIZES)
            yield

    @pytest.fixture(scope="class")
    def pipeline(self) -> Any:
        return flux.make_kontext()

    @pytest.fixture(scope="class")
    def ours(
        self, sizes: None, pipeline: Any, tmp_path_factory: pytest.TempPathFactory
    ) -> intaglio.Pipeline:
        work = tmp_path_factory.mktemp("kontext")
        pipeline.save_pretrained(work / "model")
        (work / "model/settings.json").write_text(json.dumps({"max_sequence_length": MAX_LENGTH}))
        export_bundle(ExportRequest(work / "model", work / "bundle", block=BLOCK, channels="7"))
        return intaglio.Pipeline.open(work / "bundle", threads=1)

    def reference(self, pipeline: Any, mode: str, image: Image.Image, **arguments: Any) -> Run:
        family = drawn_first(KONTEXT, HEIGHT, WIDTH)
        arguments |= SIZE | {"image": image}
        return run_with_references(pipeline, family, MODES[mode], BLOCK, [7], **arguments)

    @pytest.mark.parametrize("mode", MODES)
    def test_runs_equal_diffusers(self, pipeline: Any, ours: intaglio.Pipeline, mode: str) -> None:
        image = picture(61, 97)
        expected = self.reference(pipeline, mode, image)
        assert_equal(draw(ours, mode, image=image, **SIZE), expected)
        other = draw(ours, mode, image=picture(61, 97, seed=1), **SIZE)
        assert relative(other.latents, expected.latents) > 3 * LIMIT

    # In 23x20 and 22x33 whole tokens have another aspect ratio, by which the pipeline goes.
    @pytest.mark.parametrize(
        "size", [(97, 61), (20, 21), (34, 27), (200, 11), (28, 36), (23, 20), (22, 33)]
    )
    def test_sizes_are_those_of_the_pipeline(
        self, pipeline: Any, ours: intaglio.Pipeline, size: tuple[int, int]
    ) -> None:
        image = picture(*size)
        expected = self.reference(pipeline, "baseline", image, num_images_per_prompt=1)
        assert_equal(draw(ours, "baseline", image=image, batch=1, **SIZE), expected)

    def test_it_also_draws_from_the_prompt_alone(
        self, pipeline: Any, ours: intaglio.Pipeline
    ) -> None:
        family = drawn_first(KONTEXT, HEIGHT, WIDTH)
        expected = run_with_references(pipeline, family, MODES["cfg+dg"], BLOCK, [7])
        assert_equal(draw(ours, "cfg+dg", **SIZE), expected)

    def test_strength_makes_it_the_picture_to_start_from(
        self, pipeline: Any, ours: intaglio.Pipeline
    ) -> None:
        image = picture(WIDTH, HEIGHT)
        expected = run_from_image(pipeline, replace(DEV, width=WIDTH), image, SEEDS)
        options = SIZE | {"seeds": SEEDS, "batch": len(SEEDS), "strength": STRENGTH}
        got = draw(ours, "baseline", image=image, **options)
        assert relative(got.latents, expected.latents) < LIMIT
        assert dict(got.texts[0])["intaglio:inputs"] == "image"
        says = "given 2 times, but with strength or mask the run starts from one"
        with pytest.raises(intaglio.UsageError, match=says):
            draw(ours, "baseline", image=[image, image], **options)


class TestFlux2:
    @pytest.fixture(scope="class")
    def pipeline(self) -> Any:
        return KLEIN.make()

    @pytest.fixture(scope="class")
    def ours(self) -> intaglio.Pipeline:
        return intaglio.Pipeline.open(bundles.bundle("flux2-klein"), threads=1)

    def reference(
        self, pipeline: Any, mode: str, images: list[Image.Image], **arguments: Any
    ) -> Run:
        family = drawn_first(KLEIN, HEIGHT, WIDTH)
        arguments |= SIZE | {"image": images}
        return run_with_references(pipeline, family, MODES[mode], BLOCK, [7], **arguments)

    @pytest.mark.parametrize("mode", MODES)
    def test_runs_equal_diffusers(self, pipeline: Any, ours: intaglio.Pipeline, mode: str) -> None:
        """With two references of other sizes than that of the picture."""
        images = [picture(66, 81), picture(101, 70, seed=1)]
        expected = self.reference(pipeline, mode, images)
        assert_equal(draw(ours, mode, image=images, **SIZE), expected)
        swapped = draw(ours, mode, image=images[::-1], **SIZE)
        assert relative(swapped.latents, expected.latents) > 3 * LIMIT

    def test_the_first_reference_gives_the_size(
        self, pipeline: Any, ours: intaglio.Pipeline
    ) -> None:
        image = picture(66, 81)
        arguments = {"image": image, "height": None, "width": None, "num_images_per_prompt": 1}
        family = drawn_first(KLEIN, 80, 64)
        expected = run_with_references(pipeline, family, MODES["dg"], BLOCK, [7], **arguments)
        assert expected.images.shape == (1, 80, 64, 3)
        assert_equal(draw(ours, "dg", image=image, batch=1), expected)

    def test_large_references_are_scaled_down(
        self, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To 6400 pixels, since a token has fewer here. What is left over is cut."""
        shutil.copytree(bundles.bundle("flux2-klein"), tmp_path / "bundle")
        manifest = json.loads((tmp_path / "bundle/bundle.json").read_text())
        assert manifest["references"].pop("max_area") == 1024 * 1024
        manifest["references"]["max_area"] = 6400
        (tmp_path / "bundle/bundle.json").write_text(json.dumps(manifest))
        scale = Flux2ImageProcessor._resize_to_target_area
        smaller = staticmethod(lambda image, area: scale(image, area * 6400 // 1024**2))
        monkeypatch.setattr(Flux2ImageProcessor, "_resize_to_target_area", smaller)
        images = [picture(1153, 917)]
        expected = self.reference(pipeline, "baseline", images, num_images_per_prompt=1)
        ours = intaglio.Pipeline.open(tmp_path / "bundle", threads=1)
        assert_equal(draw(ours, "baseline", image=images, batch=1, **SIZE), expected)

    def test_members_of_a_batch_have_their_own(self, ours: intaglio.Pipeline) -> None:
        """With CFG; they end at different steps, and one joins later."""
        options = SIZE | {"prompt": PROMPT, "negative_prompt": NEGATIVE, "cfg_scale": 2.0}
        jobs: list[dict[str, Any]] = [
            options | {"steps": steps, "seeds": seed, "image": picture(64, 72, seed)}
            for steps, seed in ((5, 3), (2, 4), (4, 5))
        ]
        done = together(ours, jobs, joins=[0, 0, 1])
        for place, job in enumerate(jobs):
            alone = ours.generate(**job).latents
            assert relative(done[place].latents, torch.from_numpy(alone)) < 1e-5
        batch = intaglio.Batch(ours)
        batch.add(**jobs[0])
        assert batch.accepts(**jobs[1])
        assert not batch.accepts(**jobs[1] | {"image": picture(72, 64)})
        assert not batch.accepts(**jobs[1] | {"image": None})
