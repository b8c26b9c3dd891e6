"""What a step callback sees and can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import intaglio
from tests.python.conftest import PROMPT


def test_it_sees_every_step(pipeline: intaglio.Pipeline) -> None:
    seen: list[tuple[int, int, float, np.ndarray[Any, Any]]] = []
    result = pipeline.generate(
        PROMPT,
        steps=5,
        seeds=[1, 2],
        on_step=lambda s: seen.append((s.step, s.steps, s.sigma, s.latents.copy())),
    )
    assert [step for step, *_ in seen] == list(range(5))
    assert {steps for _, steps, *_ in seen} == {5}
    sigmas = [sigma for _, _, sigma, _ in seen]
    assert sigmas[0] == pytest.approx(1.0)
    assert sigmas == sorted(sigmas, reverse=True)
    assert {latents.shape for *_, latents in seen} == {(2, 4, 16, 16)}
    assert len({latents.tobytes() for *_, latents in seen}) == 5
    np.testing.assert_array_equal(seen[-1][3], result.latents)


def test_looking_changes_nothing(pipeline: intaglio.Pipeline) -> None:
    watched = pipeline.generate(PROMPT, on_step=lambda s: s.preview() is not None)
    np.testing.assert_array_equal(watched.latents, pipeline.generate(PROMPT).latents)


def test_latents_are_the_runs_own_memory(pipeline: intaglio.Pipeline) -> None:
    """A kept view shows later steps and outlives the run. Writing into it changes the run."""
    kept: list[np.ndarray[Any, Any]] = []
    addresses: set[int] = set()

    def on_step(step: intaglio.Step) -> None:
        addresses.add(step.latents.__array_interface__["data"][0])
        kept.append(step.latents)
        if step.step == 0:
            step.latents[:] = 0.25

    changed = pipeline.generate(PROMPT, on_step=on_step).latents.copy()
    assert len(addresses) == 1
    np.testing.assert_array_equal(kept[0], changed)
    assert not np.allclose(changed, pipeline.generate(PROMPT).latents, atol=1e-2)


def test_preview_ends_as_the_picture(pipeline: intaglio.Pipeline) -> None:
    previews = []
    result = pipeline.generate(PROMPT, seeds=[1, 2], on_step=lambda s: previews.append(s.preview()))
    assert [[i.size for i in images] for images in previews] == [[(32, 32)] * 2] * 4
    assert len({images[0].tobytes() for images in previews}) > 1
    # The last step ends at the last estimate of the clean image.
    for preview, image in zip(previews[-1], result.images, strict=True):
        np.testing.assert_allclose(np.asarray(preview, int), np.asarray(image, int), atol=1)


def test_preview_after_the_call_says_so(forked: intaglio.Pipeline) -> None:
    steps: list[intaglio.Step] = []
    forked.generate(PROMPT, on_step=steps.append)
    with pytest.raises(intaglio.UsageError, match="inside the step callback"):
        steps[0].preview()
    assert [s.step for s in steps] == [0, 1, 2, 3]


@pytest.mark.parametrize("answer", [False, np.False_, 0])
def test_false_stops(pipeline: intaglio.Pipeline, answer: Any) -> None:
    seen: list[int] = []

    def on_step(step: intaglio.Step) -> Any:
        seen.append(step.step)
        return answer if step.step == 1 else None

    with pytest.raises(intaglio.Interrupted, match="step 2 of 4"):
        pipeline.generate(PROMPT, on_step=on_step)
    assert seen == [0, 1]


class MineError(Exception):
    """An exception that the library does not know."""


@pytest.mark.parametrize("error", [MineError("oh"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_it_raises_comes_through_unchanged(
    pipeline: intaglio.Pipeline, error: BaseException
) -> None:
    def on_step(step: intaglio.Step) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        pipeline.generate(PROMPT, on_step=on_step)
    assert caught.value is error
    assert pipeline.generate(PROMPT, steps=1).images  # the pipeline is still good


def test_an_answer_without_truth_comes_through(forked: intaglio.Pipeline) -> None:
    with pytest.raises(ValueError, match="ambiguous"):
        forked.generate(PROMPT, on_step=lambda s: s.latents > 0)  # type: ignore[arg-type, return-value]


def test_a_run_inside_a_callback(forked: intaglio.Pipeline) -> None:
    inner: list[np.ndarray[Any, Any]] = []
    outer = forked.generate(
        PROMPT, on_step=lambda s: inner.append(forked.generate("a coat", steps=2).latents)
    )
    np.testing.assert_array_equal(outer.latents, forked.generate(PROMPT).latents)
    np.testing.assert_array_equal(inner[0], forked.generate("a coat", steps=2).latents)


def test_progress_bar_keeps_the_callback(
    forked: intaglio.Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    forked.generate(PROMPT, progress=True, on_step=lambda s: seen.append(s.step))
    assert seen == [0, 1, 2, 3]
    assert capsys.readouterr().out == ""
    with pytest.raises(intaglio.Interrupted):
        forked.generate(PROMPT, progress=True, on_step=lambda s: False)
