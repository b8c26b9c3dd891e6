"""What `image` means where a model takes references, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intaglio
from intaglio import _core
from tests import bundles

QUICK: dict[str, Any] = {"prompt": "a boot", "steps": 2, "cfg_scale": 1.0, "dg_scale": 0.0}
SIZE = {"height": 32, "width": 48}


@pytest.fixture(scope="module")
def klein() -> intaglio.Pipeline:
    return intaglio.Pipeline.open(bundles.bundle("flux2-klein"), threads=1)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_the_first_reference_gives_the_size(klein: intaglio.Pipeline) -> None:
    referring = klein.generate(**QUICK, image=[picture(80, 72)])
    assert referring.images[0].size == (80, 72)
    assert dict(referring.texts[0])["intaglio:inputs"] == "references"


@pytest.mark.parametrize(
    ("error", "says", "options"),
    [
        (intaglio.UsageError, "given 5 times, but .* takes up to 4", {"image": [(64, 64)] * 5}),
        (intaglio.UsageError, "takes pictures as references only, so it does not start from one",
         {"image": [(48, 32)], "strength": 0.5, **SIZE}),
        (intaglio.InputError, "48x32 .* sides of 64 pixels or more", {"image": [(48, 32)]}),
        (intaglio.InputError, "image is 600x64 .* up to 8 times", {"image": [(600, 64)]}),
        (intaglio.UsageError, "image is an empty list", {"image": []}),
    ],
)  # fmt: skip
def test_references_that_do_not_fit(
    klein: intaglio.Pipeline, error: type[Exception], says: str, options: dict[str, Any]
) -> None:
    options = QUICK | options | {"image": [picture(*size) for size in options["image"]]}
    with pytest.raises(error, match=says):
        klein.generate(**options)


def test_a_model_without_references_takes_one_picture(forked_bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(forked_bundle, threads=1)
    assert pipeline.bundle.references is None
    images = [picture(32, 32), picture(32, 32, 1)]
    with pytest.raises(intaglio.UsageError, match="takes no references and starts from one"):
        pipeline.generate(**QUICK, image=images)
    (problem,) = intaglio.validate(pipeline.bundle, **QUICK, image=images)
    assert problem.field == "image"
    one, same = (pipeline.generate(**QUICK, image=value) for value in (images[0], images[:1]))
    assert np.array_equal(one.latents, same.latents)


def test_the_bundle_says_whether_pictures_are_references_only(klein: intaglio.Pipeline) -> None:
    assert klein.bundle.references.only


def test_the_memory_plan_counts_their_tokens(klein: intaglio.Pipeline) -> None:
    assert (klein.bundle.references.most, klein.bundle.references.max_area) == (4, 1024**2)
    options = {"prompt": "a boot"} | SIZE
    plain, one, two = (
        {phase.part: phase.activations for phase in plan.phases}
        for plan in (
            _core.plan_memory(klein.bundle, options | {"image": images} if images else options)
            for images in ([], [picture(64, 64)], [picture(64, 64), picture(64, 64)])
        )
    )
    assert "vae_encoder" not in plain
    assert one["vae_encoder"] == two["vae_encoder"] > 0
    grown = one["transformer"] - plain["transformer"]
    assert two["transformer"] - one["transformer"] == pytest.approx(grown, rel=1e-6)
    # Of 96 drawn tokens and those of the prompt, 256 more.
    assert grown / plain["transformer"] > 1.0


def test_groups_of_a_limited_run_see_them(klein: intaglio.Pipeline) -> None:
    options = QUICK | SIZE | {"seeds": [1, 2, 3], "image": [picture(64, 64)]}
    plan = _core.plan_memory(klein.bundle, options | {"seeds": [1]})
    limit = plan.program + max(phase.weights + phase.activations for phase in plan.phases)
    assert _core.plan_memory(klein.bundle, options, max_memory=str(limit)).in_turn
    want = klein.generate(**options).latents
    limited = intaglio.Pipeline.open(klein.bundle.folder, threads=1, max_memory=limit)
    with pytest.warns(UserWarning, match="in groups of 1"):
        got = limited.generate(**options).latents
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-5
