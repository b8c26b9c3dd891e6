"""Requests that run together, against the same requests through generate() alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import intaglio
from tests.fake_bundle import SIZE, make_bundle
from tests.parity.test_inputs import embeddings
from tests.python.conftest import PROMPT

Job = dict[str, Any]

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
JOBS: list[Job] = [
    {"prompt": PROMPT, "seeds": 1},
    {"prompt": "a coat", "seeds": [2, 3], "steps": 3, "scheduler": "heun", "cfg_scale": (1.0, 3.0)},
    {"prompt": "", "seeds": 4, "steps": 6, "cfg_scale": 1.0, "dg_scale": 0.0},
    {"prompt": "a coat", "negative_prompt": PROMPT, "scheduler": "dpmpp-2m", "steps": 7,
     "cfg_window": (0.0, 0.5), "dg_window": (0.3, 1.0), "ma_keep": (0.9, 0.1)},
    {"prompt": PROMPT, "seeds": 5, "steps": 8, "reuse_interval": 2, "cfg_scale": 4.0},
    {"prompt": "boot", "seeds": 6, "image": PICTURE, "strength": 0.7, "dg_window": (0.5, 1.0)},
    {"prompt": "boot", "batch": 2, "ma_tokens": np.eye(16, dtype=np.uint8) * 255, "dg_scale": 2.0},
]  # fmt: skip
NONE: Mapping[int, Sequence[int]] = {}


def together(
    pipeline: intaglio.Pipeline,
    jobs: Sequence[Job],
    joins: Sequence[int],
    leaves: Mapping[int, Sequence[int]] = NONE,
    max_images: int = 16,
) -> dict[int, intaglio.Generation]:
    """Run every job in one batch, and return the results by the job's index.

    A job joins before the evaluation whose number is in `joins` and leaves before the one in
    `leaves`.
    """
    batch = intaglio.Batch(pipeline, max_images)
    places: dict[int, int] = {}
    finished = {}
    evaluation = 0
    while len(places) < len(jobs) or len(batch):
        for place, job in enumerate(jobs):
            if joins[place] == evaluation:
                places[batch.add(**job)] = place
        for place in leaves.get(evaluation, ()):
            batch.remove(next(member for member, at in places.items() if at == place))
        for step in batch.step():
            assert step.error is None
            if step.done:
                finished[places[step.id]] = step.finish()
        evaluation += 1
    assert batch.images == 0
    return finished


def same(got: intaglio.Generation, alone: intaglio.Generation) -> None:
    error = np.linalg.norm(got.latents - alone.latents) / np.linalg.norm(alone.latents)
    assert error < 1e-5
    assert len(got.images) == len(alone.images)
    for one, other in zip(got.images, alone.images, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    for name in ("base_rows", "forked_rows", "unconditional_steps", "degraded_steps", "texts"):
        assert getattr(got, name) == getattr(alone, name)
    assert len(got.step_seconds) == len(alone.step_seconds)
    assert got.timings.total >= got.timings.vae > 0
    assert got.timings.denoise >= got.timings.network > 0


def test_each_gets_what_it_would_get_alone(pipeline: intaglio.Pipeline) -> None:
    alone = [pipeline.generate(**job) for job in JOBS]
    for joins in ([0] * len(JOBS), range(len(JOBS)), [6, 5, 4, 3, 2, 1, 0], [0, 0, 3, 3, 3, 9, 9]):
        results = together(pipeline, JOBS, joins)
        assert len(results) == len(JOBS)
        for place, result in results.items():
            same(result, alone[place])


@settings(max_examples=15)
@given(data=st.data())
def test_in_whatever_order_they_come_and_go(forked: intaglio.Pipeline, data: st.DataObject) -> None:
    jobs = data.draw(st.lists(st.sampled_from(JOBS), min_size=1, max_size=6))
    joins = data.draw(st.lists(st.integers(0, 8), min_size=len(jobs), max_size=len(jobs)))
    stays = data.draw(st.lists(st.none() | st.integers(0, 2), min_size=len(jobs), max_size=6))
    leaves: dict[int, list[int]] = {}
    for place, stay in zip(range(len(jobs)), stays, strict=False):
        if stay is not None:
            leaves.setdefault(joins[place] + stay, []).append(place)
    results = together(forked, jobs, joins, leaves)
    left = {place for places in leaves.values() for place in places}
    assert set(results) == set(range(len(jobs))) - left
    for place, result in results.items():
        same(result, forked.generate(**jobs[place]))


@pytest.mark.parametrize("hoisted", [False, True])
@pytest.mark.parametrize(
    ("roles", "packed"),
    [
        (("text", "pooled", "guidance", "position"), True),
        (("text", "text_mask", "pooled"), False),
        (("class",), False),
    ],
    ids=["flux", "pixart", "dit"],
)
def test_inputs_of_every_family(
    tmp_path: Path, roles: tuple[str, ...], packed: bool, hoisted: bool
) -> None:
    pipeline = intaglio.Pipeline.open(
        make_bundle(tmp_path / "b", *roles, packed=packed, hoisted=hoisted)
    )
    if "class" in roles:
        jobs: list[Job] = [{"class_label": 7}, {"class_label": 2, "batch": 2, "steps": 5}]
    else:
        arrays = embeddings(7, "pooled" in roles, "text_mask" in roles)
        swapped = {
            name: arrays[name[9:] if name.startswith("negative_") else f"negative_{name}"]
            for name in arrays
        }
        jobs = [
            {"prompt_embeds": intaglio.PromptEmbeddings(**given), "seeds": seed}
            for seed, given in enumerate((arrays, swapped))
        ]
    if "guidance" in roles:
        jobs[1]["distilled_guidance"] = 1.25
    jobs += [{**jobs[0], "cfg_scale": 1.0, "seeds": 8}, {**jobs[1], "dg_window": (0.4, 1.0)}]
    results = together(pipeline, jobs, [0, 1, 1, 2])
    for place, job in enumerate(jobs):
        same(results[place], pipeline.generate(**job))


def test_observed_bundles_run_too(observed_bundle: Path) -> None:
    pipeline = intaglio.Pipeline.open(observed_bundle)
    results = together(pipeline, JOBS[:3], [0, 1, 2])
    for place, job in enumerate(JOBS[:3]):
        same(results[place], pipeline.generate(**job))


def test_steps_tell_what_a_callback_is_told(pipeline: intaglio.Pipeline) -> None:
    alone: list[tuple[Any, ...]] = []
    pipeline.generate(
        **JOBS[1],
        on_step=lambda s: alone.append((s.step, s.steps, s.sigma, s.timestep, s.preview())),
    )
    batch = intaglio.Batch(pipeline)
    batch.add(**JOBS[0])
    member = batch.add(**JOBS[1])
    assert (len(batch), batch.images) == (2, 3)
    seen = [step for _ in range(5) for step in batch.step() if step.id == member]
    assert [step.done for step in seen] == [False, False, True]
    with pytest.raises(intaglio.UsageError, match="wait for its last step"):
        seen[0].finish()
    # A step keeps what it shows, so this holds later, too.
    for step, (*told, pictures) in zip(seen, alone, strict=True):
        assert [step.step, step.steps, step.sigma, step.timestep] == told
        for got, expected in zip(step.preview(), pictures, strict=True):
            assert np.abs(np.asarray(got, int) - np.asarray(expected, int)).max() <= 1


def test_results_outlive_the_batch_and_are_finished_beside_it(forked: intaglio.Pipeline) -> None:
    alone = forked.generate(PROMPT)
    batch = intaglio.Batch(forked)
    batch.add(prompt=PROMPT)
    done = [step for _ in range(4) for step in batch.step()][-1]
    batch.add(prompt="a coat", steps=50)
    with ThreadPoolExecutor(2) as pool:
        finished = [pool.submit(done.finish) for _ in range(2)]
        while len(batch):
            batch.step()
    del batch
    for future in finished:
        same(future.result(), alone)


def test_one_that_fails_leaves_the_others_alone(pipeline: intaglio.Pipeline) -> None:
    embeds = pipeline.embed("", "")
    huge = {
        name: np.full_like(getattr(embeds, name), np.finfo(np.float32).max)
        for name in ("prompt_embeds", "pooled_prompt_embeds")
    }
    bad = {"prompt_embeds": intaglio.PromptEmbeddings(**huge), "cfg_scale": 1.0}
    with pytest.raises(intaglio.InputError) as alone:
        pipeline.generate(**bad)
    batch = intaglio.Batch(pipeline)
    members = [batch.add(**job) for job in (JOBS[0], bad, JOBS[3])]
    ended = {}
    while len(batch):
        ended |= {step.id: step for step in batch.step() if step.done or step.error}
    failed = ended[members[1]]
    assert isinstance(failed.error, intaglio.InputError)
    assert str(failed.error) == str(alone.value)
    assert not failed.done
    for call in (failed.finish, failed.preview):
        with pytest.raises(intaglio.InputError, match="NaN"):
            call()
    same(ended[members[0]].finish(), pipeline.generate(**JOBS[0]))
    same(ended[members[2]].finish(), pipeline.generate(**JOBS[3]))


REFUSED: list[tuple[Job, str]] = [
    (
        {"height": 24, "width": 40},
        "height and width ask for 40x24 pixels where the batch draws",
    ),
    ({"ma_channels": [1, 2]}, "ma_channels differ from"),
    ({"batch": 4}, "images where the batch has room for 3 of 4: wait"),
    ({"batch": 5}, "images where the batch has room for 3 of 4: ask for fewer"),
]
WRONG: list[tuple[Job, str]] = [
    ({"steps": 0}, "steps"),
    ({"height": 25}, "^height 25"),
    ({"scheduler": "ddim"}, "ddim"),
    ({"on_step": print}, "has no option on_step"),
    ({"prompt_embeds": "missing.safetensors", "prompt": None}, "missing.safetensors"),
    ({"latents": np.full((1, 4, 16, 16), np.nan, np.float32)}, "NaN"),
]


@pytest.mark.parametrize(("change", "says"), [*REFUSED, *WRONG], ids=str)
def test_what_is_refused_changes_nothing(forked: intaglio.Pipeline, change: Job, says: str) -> None:
    batch = intaglio.Batch(forked, max_images=4)
    batch.add(**JOBS[0])
    batch.step()
    request = {"prompt": PROMPT, **change}
    with pytest.raises(intaglio.Error, match=says):
        batch.add(**request)
    if (change, says) in REFUSED:
        assert not batch.accepts(**request)
    else:
        with pytest.raises(intaglio.Error, match=says):
            batch.accepts(**request)
    assert (len(batch), batch.images) == (1, 1)
    done = [step for _ in range(3) for step in batch.step()][-1]
    same(done.finish(), forked.generate(**JOBS[0]))


def test_an_empty_batch_takes_another_size(pipeline: intaglio.Pipeline) -> None:
    batch = intaglio.Batch(pipeline, max_images=2)
    assert batch.step() == []
    for job in ({}, {"height": 24, "width": 40}, {"ma_channels": [1, 2]}, {"batch": 2}):
        assert batch.accepts(prompt=PROMPT, **job)
        member = batch.add(prompt=PROMPT, **job)
        done = [step for _ in range(4) for step in batch.step()][-1]
        assert (done.id, done.done) == (member, True)
        same(done.finish(), pipeline.generate(PROMPT, **job))
    assert not batch.accepts(prompt=PROMPT, batch=3)


def test_texts_of_another_length_do_not_fit(tmp_path: Path) -> None:
    pipeline = intaglio.Pipeline.open(make_bundle(tmp_path / "b", "text", "pooled"))
    batch = intaglio.Batch(pipeline)
    batch.add(prompt_embeds=intaglio.PromptEmbeddings(**embeddings(7)))
    longer = intaglio.PromptEmbeddings(**embeddings(9))
    assert not batch.accepts(prompt_embeds=longer)
    with pytest.raises(intaglio.UsageError, match="9 tokens where the batch has 7 tokens"):
        batch.add(prompt_embeds=longer)
    assert batch.accepts(prompt_embeds=intaglio.PromptEmbeddings(**embeddings(7)), batch=7)


def test_given_arrays_may_change_afterwards(tmp_path: Path) -> None:
    pipeline = intaglio.Pipeline.open(make_bundle(tmp_path / "b", "text", "pooled"))
    arrays = embeddings(7)
    noise = np.random.default_rng(1).normal(size=(1, 4, SIZE // 2, SIZE)).astype(np.float32)
    job = {"prompt_embeds": intaglio.PromptEmbeddings(**arrays), "latents": noise}
    alone = pipeline.generate(**job)
    batch = intaglio.Batch(pipeline)
    batch.add(**job)
    for array in (*arrays.values(), noise):
        array.fill(0)
    done = [step for _ in range(3) for step in batch.step()][-1]
    same(done.finish(), alone)


def test_removed_ones_are_gone(forked: intaglio.Pipeline) -> None:
    batch = intaglio.Batch(forked, max_images=2)
    first, second = (batch.add(**job, steps=3) for job in ({"prompt": ""}, {"prompt": PROMPT}))
    batch.step()
    batch.remove(first)
    assert (len(batch), batch.images) == (1, 1)
    assert {step.id for _ in range(2) for step in batch.step()} == {second}
    for gone in (first, second, 99):
        with pytest.raises(intaglio.UsageError, match=f"no request {gone}"):
            batch.remove(gone)


def test_cut_prompts_warn(forked: intaglio.Pipeline) -> None:
    batch = intaglio.Batch(forked)
    batch.add(prompt="boot " * 50, steps=1)
    (step,) = batch.step()
    with pytest.warns(UserWarning, match="more tokens"):
        step.finish()


def test_there_has_to_be_room(forked: intaglio.Pipeline) -> None:
    with pytest.raises(intaglio.UsageError, match="max_images 0 leaves no room"):
        intaglio.Batch(forked, 0)
    assert "0 requests" in repr(intaglio.Batch(forked))


def test_the_step_of_a_batch_shows_itself(forked: intaglio.Pipeline) -> None:
    batch = intaglio.Batch(forked)
    batch.add(prompt=PROMPT, steps=1)
    (step,) = batch.step()
    assert repr(step) == "<BatchStep of 0: 0 of 1, done>"
    assert isinstance(step.finish()._repr_png_(), bytes)
