"""Every family, layout, guidance mode and precision against diffusers' own float32 pipelines.

`pytest tests/parity/test_families.py --parity-table docs/parity.md` writes the errors as a table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import intaglio
from intaglio_export.exporter import export_bundle
from intaglio_export.options import LAYOUTS, ExportRequest
from tests.families import FAMILIES
from tests.families.parts import MAX_LENGTH
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
    guided_run,
    native_run,
    run_from_image,
    run_with_seeds,
    save_embeddings,
)
from tests.parity.table import Cell, Table

BLOCK = 1
MODES = {"baseline": (1.0, 0.0), "cfg": (4.0, 0.0), "dg": (1.0, 1.5), "cfg+dg": (4.0, 1.5)}
# Relative L2 of the final latents.
LIMITS = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The pipeline of a family as save_pretrained writes it, with settings."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def make(name: str) -> Path:
        FAMILIES[name].make().save_pretrained(root / name)
        settings = {"block": BLOCK, "height": HEIGHT, "width": FAMILIES[name].width}
        if not FAMILIES[name].by_class:
            settings["max_sequence_length"] = MAX_LENGTH
        (root / name / "settings.json").write_text(json.dumps(settings))
        return root / name

    return make


@pytest.fixture(scope="module")
def bundle(folder: Callable[[str], Path]) -> Callable[[str, str, str], intaglio.Pipeline]:
    """A family's bundle in a layout and precision, opened."""

    @cache
    def export(name: str, layout: str, dtype: str) -> intaglio.Pipeline:
        source = folder(name)
        output = source.parent / f"{name}-{layout}-{dtype}"
        export_bundle(ExportRequest(source, output, layout=layout, dtype=dtype))
        return intaglio.Pipeline.open(output, threads=1)

    return export


@pytest.fixture(scope="module")
def reference() -> Callable[[str, str], Run]:
    """diffusers' run of a family in a mode, float32."""
    pipelines: dict[str, Any] = {}

    @cache
    def run(name: str, mode: str) -> Run:
        if name not in pipelines:
            pipelines[name] = FAMILIES[name].make()
        cfg, dg = MODES[mode]
        return guided_run(pipelines[name], FAMILIES[name], cfg, dg, BLOCK, [7])

    return run


def condition(name: str, tmp: Path) -> dict[str, Any]:
    """What the runtime is asked to draw: diffusers' prompts, class or embeddings."""
    family = FAMILIES[name]
    what: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    if family.by_class:
        what = {"class_label": CLASS}
    elif family.embeddings:
        save_embeddings(family, tmp / "prompt.safetensors")
        what = {"prompt_embeds": tmp / "prompt.safetensors"}
    return what


def generate(pipeline: intaglio.Pipeline, name: str, mode: str, tmp: Path) -> intaglio.Generation:
    cfg, dg = MODES[mode]
    return pipeline.generate(
        **condition(name, tmp), seeds=SEED, batch=IMAGES, steps=STEPS, cfg_scale=cfg, dg_scale=dg
    )


def relative(got: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.linalg.norm(got - expected.numpy()) / np.linalg.norm(expected.numpy()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", FAMILIES)
def test_run_equals_diffusers(
    name: str,
    dtype: str,
    layout: str,
    mode: str,
    bundle: Callable[[str, str, str], intaglio.Pipeline],
    reference: Callable[[str, str], Run],
    parity_table: Table,
    tmp_path: Path,
) -> None:
    pipeline = bundle(name, layout, dtype)
    assert pipeline.bundle.massive_activations.channels == [7]
    expected = reference(name, mode)
    got = generate(pipeline, name, mode, tmp_path)
    error = relative(got.latents, expected.latents)
    assert error < LIMITS[dtype]
    parity_table.add(Cell(name, layout, mode, dtype), error)
    if dtype == "float32":
        images = np.stack([np.asarray(image, int) for image in got.images])
        assert np.abs(images - expected.images.astype(int)).max() <= 1


# Qwen-Image's own guidance rescales the result to the norm of D_c, which is another formula.
@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "qwen-image"])
def test_cfg_equals_the_pipelines_own(name: str, reference: Callable[[str, str], Run]) -> None:
    """The oracle's formula is what diffusers calls guidance."""
    cfg, _ = MODES["cfg"]
    own = native_run(FAMILIES[name].make(), FAMILIES[name], cfg)
    assert relative(own.latents.numpy(), reference(name, "cfg").latents) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_modes_differ(name: str, reference: Callable[[str, str], Run]) -> None:
    """Otherwise no cell could tell its mode from another."""
    runs = [reference(name, mode).latents for mode in MODES]
    for i, one in enumerate(runs):
        for other in runs[i + 1 :]:
            assert relative(one.numpy(), other) > 0.1


SEEDS = [11, 4]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_image_its_seed(
    name: str, bundle: Callable[[str, str, str], intaglio.Pipeline], tmp_path: Path
) -> None:
    expected = run_with_seeds(FAMILIES[name].make(), FAMILIES[name], SEEDS)
    pipeline = bundle(name, "forked", "float32")
    got = pipeline.generate(
        **condition(name, tmp_path), seeds=SEEDS, steps=STEPS, cfg_scale=1.0, dg_scale=0.0
    )
    assert relative(got.latents, expected.latents) < LIMITS["float32"]


@pytest.mark.parametrize("name", [n for n in FAMILIES if FAMILIES[n].img2img])
def test_image_to_image(
    name: str, bundle: Callable[[str, str, str], intaglio.Pipeline], tmp_path: Path
) -> None:
    family = FAMILIES[name]
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, family.width, 3), np.uint8)
    picture = Image.fromarray(noise)
    expected = run_from_image(family.make(), family, picture, SEEDS)
    got = bundle(name, "forked", "float32").generate(
        **condition(name, tmp_path),
        image=picture,
        strength=STRENGTH,
        seeds=SEEDS,
        steps=STEPS,
        cfg_scale=1.0,
        dg_scale=0.0,
    )
    assert relative(got.latents, expected.latents) < LIMITS["float32"]
