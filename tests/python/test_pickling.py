"""What can be sent to another process, and what is opened there."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intaglio
from tests.python.conftest import PROMPT

ARRAYS = [
    f"{negative}{name}"
    for negative in ("", "negative_")
    for name in ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
]


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def draw(bundle: Path) -> intaglio.Generation:
    return intaglio.Pipeline.open(bundle).generate(PROMPT, steps=1)


def check_equal(one: intaglio.Generation, other: intaglio.Generation) -> None:
    np.testing.assert_array_equal(one.latents, other.latents)
    for a, b in zip(one.images, other.images, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert repr(one.loop) == repr(other.loop)
    assert one.texts == other.texts


@pytest.mark.reported(
    "huggingface/transformers#26493", "huggingface/diffusers#5234", "openvinotoolkit/openvino#1065"
)
def test_workers_return_what_they_drew(forked: intaglio.Pipeline, forked_bundle: Path) -> None:
    """A worker process returns a Generation as it is."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        returned = pool.submit(draw, forked_bundle).result()
    check_equal(returned, forked.generate(PROMPT, steps=1))
    assert returned.timings.total > 0


@pytest.mark.parametrize("way", [pickled, copy.copy, copy.deepcopy])
def test_results_can_be_copied(forked: intaglio.Pipeline, way: Callable[[Any], Any]) -> None:
    generation = forked.generate(PROMPT, steps=1)
    copied = way(generation)
    check_equal(copied, generation)
    assert repr(copied.timings) == repr(generation.timings)
    assert way(generation.timings).denoise == generation.timings.denoise
    embeds = forked.embed("boot " * 30, "")
    again = way(embeds)
    for name in ARRAYS:
        if (array := getattr(embeds, name)) is None:
            assert getattr(again, name) is None
        else:
            np.testing.assert_array_equal(getattr(again, name), array)
            shared = np.shares_memory(getattr(again, name), array)
            assert shared == (way is copy.copy)
    assert again.notes == embeds.notes != []
    drawn = (forked.generate(prompt_embeds=each, steps=1).latents for each in (embeds, again))
    np.testing.assert_array_equal(*drawn)
    (problem,) = intaglio.validate(forked.bundle, prompt=PROMPT, steps=0)
    assert repr(way(problem)) == repr(problem)
    error = way(intaglio.InputError("a sentence"))
    assert (type(error), error.args) == (intaglio.InputError, ("a sentence",))


def test_a_generation_becomes_a_dict(forked: intaglio.Pipeline) -> None:
    generation = forked.generate(PROMPT, steps=1)
    fields = dataclasses.asdict(generation)
    assert list(fields) == [field.name for field in dataclasses.fields(generation)]
    np.testing.assert_array_equal(fields["latents"], generation.latents)


@pytest.mark.parametrize("way", [pickled, copy.copy, copy.deepcopy])
def test_what_is_open_says_where_to_open_it(
    forked: intaglio.Pipeline, way: Callable[[Any], Any]
) -> None:
    for thing in (forked, intaglio.Batch(forked), forked.bundle):
        with pytest.raises(TypeError, match=r"cannot be pickled or copied: .* in the worker"):
            way(thing)
