"""The memory plan: what it says, what keeps to it, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import intaglio
from intaglio import _core
from tests import bundles
from tests.export.engines import ENTRY_POINT

SIZE: dict[str, Any] = {"steps": 2, "seeds": [3, 4], "cfg_scale": 2.0, "dg_scale": 1.0}


@pytest.fixture(scope="module")
def flux() -> Path:
    """A tiny FLUX.1, whose text encoders are CLIP and T5."""
    return bundles.bundle("flux-dev")


def options(bundle: Path) -> dict[str, Any]:
    classes = _core.Bundle.open(bundle).classes
    return SIZE | ({"class_label": 1} if classes else {"prompt": "a dark boot"})


def limit_in_turn(bundle: Path, **options: Any) -> int:
    """Return a limit under which parts have to run in turn, and may."""
    opened = _core.Bundle.open(bundle)
    plan = _core.plan_memory(opened, options)
    largest = max(p.weights + p.activations for p in plan.phases)
    return plan.program + largest + (plan.peak - plan.program - largest) // 2


def test_the_plan_has_the_files_of_each_part_in_order(flux: Path) -> None:
    plan = _core.plan_memory(_core.Bundle.open(flux))
    parts = ["text_encoder", "text_encoder_2", "transformer", "vae_decoder"]
    assert [phase.part for phase in plan.phases] == parts
    for phase in plan.phases:
        files = (path for path in (flux / phase.part).iterdir() if path.suffix != ".onnx")
        assert phase.weights == sum(path.stat().st_size for path in files)
        assert phase.activations > 0
    assert not plan.in_turn
    assert plan.peak == plan.program + sum(p.weights + p.activations for p in plan.phases)


def test_more_images_and_branches_take_more(forked_bundle: Path) -> None:
    def transformer(**options: Any) -> int:
        phases = _core.plan_memory(_core.Bundle.open(forked_bundle), options).phases
        return next(phase.activations for phase in phases if phase.part == "transformer")

    one = transformer(cfg_scale=1, dg_scale=0)
    guided = transformer(cfg_scale=2, dg_scale=1)
    assert one < guided < transformer(cfg_scale=2, dg_scale=1, batch=4)
    assert transformer(height=64, width=64) > transformer(height=32, width=32)


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "dit"])
def test_parts_in_turn_draw_the_same(family: str) -> None:
    bundle = bundles.bundle(family)
    asked = options(bundle)
    if family == "flux-dev":
        asked.pop("cfg_scale")
    limit = limit_in_turn(bundle, **asked)
    assert _core.plan_memory(_core.Bundle.open(bundle), asked, max_memory=str(limit)).in_turn
    limited = intaglio.Pipeline.open(bundle, device="cpu", max_memory=limit)
    expected = intaglio.Pipeline.open(bundle, device="cpu").generate(**asked)
    for _ in range(2):
        got = limited.generate(**asked)
        np.testing.assert_array_equal(got.latents, expected.latents)
        for mine, theirs in zip(got.images, expected.images, strict=True):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_embeddings_and_pictures_under_a_limit(forked_bundle: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    asked = options(forked_bundle) | {"image": picture}
    free = intaglio.Pipeline.open(forked_bundle, device="cpu")
    limited = intaglio.Pipeline.open(
        forked_bundle, device="cpu", max_memory=limit_in_turn(forked_bundle, **asked)
    )
    np.testing.assert_array_equal(limited.generate(**asked).latents, free.generate(**asked).latents)
    mine, theirs = limited.embed("a boot", "a dress"), free.embed("a boot", "a dress")
    for name in ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_a_batch_in_turn_has_one_request_and_no_previews(forked_bundle: Path) -> None:
    asked = options(forked_bundle)
    limit = limit_in_turn(forked_bundle, **asked)
    limited = intaglio.Pipeline.open(forked_bundle, device="cpu", max_memory=limit)
    batch = intaglio.Batch(limited, max_images=4)
    batch.add(**asked)
    assert batch.in_turn
    assert not batch.accepts(**asked)
    [step] = batch.step()
    with pytest.raises(intaglio.UsageError, match="max-memory"):
        step.preview()
    [step] = batch.step()
    assert step.done
    assert batch.accepts(**asked)
    expected = intaglio.Pipeline.open(forked_bundle, device="cpu").generate(**asked)
    np.testing.assert_array_equal(step.finish().latents, expected.latents)


def test_the_batch_that_is_named_fits_and_a_larger_one_does_not(forked_bundle: Path) -> None:
    bundle = _core.Bundle.open(forked_bundle)
    plan = _core.plan_memory(bundle, {"batch": 50})
    limit = str(plan.peak)
    small = {"max_memory": limit, "together": 1}  # of which no run is split
    with pytest.raises(intaglio.OutOfMemoryError) as refused:
        _core.plan_memory(bundle, {"batch": 500}, **small)
    fits = re.search(r"batch (\d+) fits", str(refused.value))
    assert fits, str(refused.value)
    _core.plan_memory(bundle, {"batch": int(fits[1])}, **small)
    with pytest.raises(intaglio.OutOfMemoryError):
        _core.plan_memory(bundle, {"batch": int(fits[1]) + 10}, **small)


def test_a_size_below_the_largest_part_is_refused_before_loading(forked_bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle, device="cpu", max_memory="1MB")
    before = {file.path for file in psutil.Process().memory_maps()}
    with pytest.raises(intaglio.OutOfMemoryError, match="nothing smaller fits") as refused:
        pipeline.generate(**options(forked_bundle))
    assert "\n" not in str(refused.value)
    mapped = {file.path for file in psutil.Process().memory_maps()} - before
    assert not any(path.startswith(str(forked_bundle)) for path in mapped)


def test_auto_is_the_free_memory(forked_bundle: Path) -> None:
    limit = _core.plan_memory(_core.Bundle.open(forked_bundle), max_memory="auto").limit
    mine = psutil.Process().memory_info().rss
    assert limit <= 1.1 * (psutil.virtual_memory().available + mine)
    assert limit > mine


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8e9),
        ("7.5GiB", 7.5 * 2**30),
        ("9000MB", 9e9),
        ("9000MiB", 9000 * 2**20),
        (10**10, 1e10),
    ],
)
def test_sizes(forked_bundle: Path, text: str | int, size: float) -> None:
    bundle = _core.Bundle.open(forked_bundle)
    assert _core.plan_memory(bundle, max_memory=str(text)).limit == size


@pytest.mark.parametrize("text", ["8TB", "GB", "-8GB", "0", "1e400GB", "nan", "8 GB"])
def test_what_is_no_size(forked_bundle: Path, text: str) -> None:
    with pytest.raises(intaglio.UsageError, match="is not a size"):
        intaglio.Pipeline.open(forked_bundle, device="cpu", max_memory=text)


def test_an_encoder_that_does_not_fit_a_card_stays_on_the_cpu(flux: Path) -> None:
    bundle = _core.Bundle.open(flux)
    sizes = {
        p.part: p.weights + p.activations for p in _core.plan_memory(bundle, device="cuda").phases
    }
    limit = max(sizes[part] for part in sizes if not part.startswith("text")) + 1
    plan = _core.plan_memory(bundle, device="cuda", max_memory=str(limit))
    too_large = {part for part, size in sizes.items() if size > limit}
    assert {phase.part for phase in plan.phases if phase.on_cpu} == too_large
    assert plan.program == 0
    assert plan.peak <= limit


def kept_buffers(bundle: Path, **options: Any) -> tuple[dict[str, int], int]:
    """Return each part's activations on WebGPU, and what parts in turn take there."""
    phases = _core.plan_memory(_core.Bundle.open(bundle), options, device="webgpu").phases
    activations = {phase.part: phase.activations for phase in phases}
    return activations, max(phase.weights for phase in phases) + sum(activations.values())


def test_tiles_become_smaller_where_webgpu_keeps_the_buffers_of_all_parts(flux: Path) -> None:
    size = {"height": 512, "width": 512}
    activations, whole = kept_buffers(flux, **size)
    limit = whole - activations["vae_decoder"] // 2
    plan = _core.plan_memory(_core.Bundle.open(flux), size, device="webgpu", max_memory=str(limit))
    assert plan.peak <= limit
    assert 256 <= plan.vae_tile < 512
    assert not any(phase.on_cpu for phase in plan.phases)


def test_encoders_leave_webgpu_until_the_buffers_fit(flux: Path) -> None:
    activations, whole = kept_buffers(flux)
    moved: set[str] = set()
    for encoder in ("text_encoder_2", "text_encoder"):  # the larger one first
        plan = _core.plan_memory(
            _core.Bundle.open(flux), device="webgpu", max_memory=str(whole - 1)
        )
        moved.add(encoder)
        whole -= activations[encoder]
        assert {phase.part for phase in plan.phases if phase.on_cpu} == moved
        assert plan.peak == whole


def test_what_webgpu_refuses_names_the_buffers(flux: Path, tmp_path: Path) -> None:
    """The smallest drawing of a model of 16 bits, so that no other way out is left."""
    shutil.copytree(flux, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle/bundle.json").read_text())
    manifest["dtype"] = "bfloat16"
    (tmp_path / "bundle/bundle.json").write_text(json.dumps(manifest))
    size = {"height": 4, "width": 4}
    activations, whole = kept_buffers(tmp_path / "bundle", **size)
    smallest = whole - activations["text_encoder"] - activations["text_encoder_2"]
    bundle = _core.Bundle.open(tmp_path / "bundle")
    with pytest.raises(intaglio.OutOfMemoryError, match="buffers of all parts stay on webgpu"):
        _core.plan_memory(bundle, size, device="webgpu", max_memory=str(smallest - 1))
    plan = _core.plan_memory(bundle, size, device="webgpu", max_memory=str(smallest))
    assert plan.peak == smallest


def test_pictures_around_a_drawn_part_are_counted(forked_bundle: Path) -> None:
    """Each finished picture has the size of the one that was given, and not of the drawing."""
    bundle = _core.Bundle.open(forked_bundle)
    small, large = (np.full((*size, 3), 255, np.uint8) for size in ((32, 32), (70, 90)))
    run: dict[str, Any] = {"prompt": "a boot", "batch": 3, "height": 32, "width": 32}

    def decoder(**options: Any) -> int:
        phases = _core.plan_memory(bundle, run | options).phases
        return next(phase.activations for phase in phases if phase.part == "vae_decoder")

    plain = decoder(image=small, mask=small)
    padded = decoder(image=large, mask=large, mask_padding=2)
    assert padded - plain == 3 * 3 * (90 * 70 - 32 * 32)


def test_a_part_may_be_drawn_smaller_without_another_picture(forked_bundle: Path) -> None:
    bundle = _core.Bundle.open(forked_bundle)
    run = {"prompt": "a boot", "image": np.full((90, 90, 3), 255, np.uint8)}
    run |= {"mask": run["image"], "mask_padding": 2, "height": 128, "width": 128}
    limit = _core.plan_memory(bundle, run | {"height": 64, "width": 64}).peak
    with pytest.raises(intaglio.OutOfMemoryError, match=r"height \d+ fits$"):
        _core.plan_memory(bundle, run, max_memory=str(limit))


# A process of its own, since the peak of this one is that of all tests so far. It keeps to the
# smallest limit, for all images or for a group of them, or has none.
MEASURE = """
import json, sys
import intaglio
from intaglio import _core
from intaglio.onnxruntime_library import onnxruntime_library

folder, at_once = sys.argv[1], int(sys.argv[2])
bundle, run = _core.Bundle.open(folder), {"steps": 2, "batch": 4}
options = _core.BackendOptions(device="cpu", onnxruntime_library=onnxruntime_library())
_core.make_backend(options, bundle)
plan = _core.plan_memory(bundle, run | {"batch": at_once or 4})
if at_once:
    largest = max(part.weights + part.activations for part in plan.phases)
    plan = _core.plan_memory(bundle, run, max_memory=str(plan.program + largest))
pipeline = intaglio.Pipeline.open(folder, device="cpu", threads=1, max_memory=plan.limit or None)
pipeline.generate("a boot", **run)
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(lines["VmHWM"].split()[0]) * 1024
print(json.dumps([plan.in_turn, plan.images_at_once, plan.peak, peak]))
"""


@pytest.mark.parametrize("at_once", [0, 2, 4])
@pytest.mark.parametrize("family", [bundles.SHIPPED, "flux-dev"])
def test_a_run_takes_no_more_than_its_plan(family: str, at_once: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, bundles.bundle(family), str(at_once)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    in_turn, images, planned, measured = json.loads(done.stdout)
    assert (in_turn, images) == (at_once > 0, at_once or 4)
    assert measured <= planned <= 1.35 * measured


def limit_for(bundle: Path, images: int, **options: Any) -> int:
    """Return the smallest limit for so many images."""
    plan = _core.plan_memory(_core.Bundle.open(bundle), options | {"batch": images})
    return plan.program + max(p.weights + p.activations for p in plan.phases)


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "dit"])
def test_a_batch_in_groups_is_the_whole_batch(family: str) -> None:
    bundle = bundles.bundle(family)
    asked = options(bundle) | {"seeds": 3, "batch": 8}
    if family == "flux-dev":
        asked.pop("cfg_scale")
    limit = limit_for(bundle, 5, **asked)
    plan = _core.plan_memory(_core.Bundle.open(bundle), asked, max_memory=str(limit))
    assert plan.images_at_once == 4  # and not 5, which need two groups too
    assert plan.peak <= limit
    expected = intaglio.Pipeline.open(bundle, device="cpu").generate(**asked)
    with pytest.warns(UserWarning, match="in groups of 4"):
        got = intaglio.Pipeline.open(bundle, device="cpu", max_memory=limit).generate(**asked)
    np.testing.assert_array_equal(got.latents, expected.latents)
    for mine, theirs in zip(got.images, expected.images, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
    assert got.texts == expected.texts
    assert (got.base_rows, got.forked_rows) == (expected.base_rows, expected.forked_rows)
    assert len(got.step_seconds) == asked["steps"]


@pytest.mark.filterwarnings("ignore:.*in groups of")
def test_groups_with_their_own_seeds_and_a_picture(forked_bundle: Path) -> None:
    """The callback sees each group: what it writes goes into that one's images."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    asked = options(forked_bundle) | {"image": picture, "seeds": [5, 3, 5, 8, 1], "steps": 4}
    asked |= {"guidance": "apg", "negative_prompt": "a dress", "reuse_interval": 2}
    seen: list[tuple[int, int, int, int]] = []

    def on_step(step: intaglio.Step) -> None:
        seen.append((step.group, step.groups, step.first_image, len(step.latents)))
        step.latents[:] *= np.float32(0.5)

    expected = intaglio.Pipeline.open(forked_bundle, device="cpu").generate(
        **asked, on_step=on_step
    )
    whole, seen[:] = list(seen), []
    limit = limit_for(forked_bundle, 2, **{k: v for k, v in asked.items() if k != "seeds"})
    got = intaglio.Pipeline.open(forked_bundle, device="cpu", max_memory=limit).generate(
        **asked, on_step=on_step
    )
    np.testing.assert_array_equal(got.latents, expected.latents)
    assert [text["parameters"] for text in got.texts] == [
        text["parameters"] for text in expected.texts
    ]
    assert {*whole} == {(0, 1, 0, 5)}
    assert list(dict.fromkeys(seen)) == [(0, 3, 0, 2), (1, 3, 2, 2), (2, 3, 4, 1)]


def test_runs_whose_images_change_each_other_are_not_split(forked_bundle: Path) -> None:
    """The farthest image decides which steps are skipped."""
    asked = options(forked_bundle) | {"seeds": 3, "batch": 5}
    limit = limit_for(forked_bundle, 2, **asked)
    pipeline = intaglio.Pipeline.open(forked_bundle, device="cpu", max_memory=limit)
    with pytest.raises(intaglio.OutOfMemoryError, match="batch 2 fits"):
        pipeline.generate(**asked, skip_interval=2)


def test_inspect_prints_the_groups(forked_bundle: Path) -> None:
    def inspect(*flags: str) -> str:
        words = [ENTRY_POINT, "inspect", forked_bundle, "--plan", "--device", "cpu", *flags]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    one = json.loads(inspect("--json"))
    assert (one["images"], one["images_at_once"]) == (1, 1)
    transformer = next(part for part in one["parts"] if part["part"] == "transformer")
    limit = one["program"] + 60 * transformer["activations"]
    flags = ["--batch", "100", "--max-memory", str(limit)]
    said = json.loads(inspect(*flags, "--json"))
    assert said["images"] == 100
    assert 30 < said["images_at_once"] < 90
    assert said["peak"] <= limit
    assert ", 100 images in groups of " in inspect(*flags)
    assert ", 3 images at once:" in inspect("--batch", "3")
