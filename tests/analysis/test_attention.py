"""Attention by key: compared with torch on every family, planted sinks found, keys hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from intaglio.analysis.channels.attention import (
    IMAGE,
    TEXT,
    Attention,
    attending,
    hiding,
    key_kinds,
    written_tokens,
)
from intaglio.analysis.channels.model_recorder import record_model
from intaglio.analysis.channels.recorder import ATTENTION, Statistics
from intaglio.analysis.channels.sinks import attention_claims, sinks
from intaglio.torch_reference.model import Model
from intaglio_export.adapters import adapter_for
from intaglio_export.adapters.base import Inputs
from tests.analysis.conftest import PROMPTS, STEPS, make_model
from tests.families import FAMILIES
from tests.families.parts import MAX_LENGTH

GRID = 4, 6
TOKENS = 24
NAMES = [
    "sd3.5",
    "flux-dev",
    "flux2-klein",
    "chroma",
    "qwen-image",
    "z-image",
    "krea2",
    "dit",
    "pixart-sigma",
]


def open_family(name: str) -> Model:
    pipeline = FAMILIES[name].make()
    family = adapter_for(type(pipeline).__name__)
    assert family is not None
    length = FAMILIES[name].call.get("max_sequence_length", MAX_LENGTH)
    grid = None if name == "dit" else GRID
    return Model(family(pipeline), PROMPTS, length, grid)


def calls_of(model: Model, inputs: Inputs) -> list[Attention]:
    """Return the call of every block in one forward."""
    found: list[Attention] = []

    def attend(block: int, call: Attention) -> None:
        assert block == len(found)
        found.append(call)

    with attending(model, attend), torch.no_grad():
        model.adapter.run(inputs)
    return found


def some_inputs(model: Model) -> Inputs:
    given, _ = model.inputs(range(len(PROMPTS)))
    return given | {
        "latent": model.noise(range(len(PROMPTS))),
        "timestep": torch.full((len(PROMPTS),), 500.0),
    }


@pytest.mark.parametrize("name", NAMES)
def test_mass_and_kinds_are_those_of_the_family(name: str) -> None:
    """With the unit matrix as values, torch's attention returns its weights. Of the first block's
    keys, those that are not of the image are those that change with the text."""
    model = open_family(name)
    inputs = some_inputs(model)
    calls = calls_of(model, inputs)
    assert len(calls) == model.blocks
    written = written_tokens(model)
    for call in calls:
        one = torch.eye(call.key.shape[2]).expand(*call.key.shape[:2], -1, -1)
        weights = functional.scaled_dot_product_attention(
            call.query, call.key, one, attn_mask=call.mask, scale=call.scale
        )
        kinds = key_kinds(model, written, call.key.shape[2])
        assert (kinds == IMAGE).sum(1).tolist() == [model.tokens] * len(kinds)
        np.testing.assert_array_equal(
            np.flatnonzero(kinds[0] == IMAGE), np.arange(call.key.shape[2])[call.images]
        )
        expected = weights[:, :, kinds[0] == IMAGE].mean((1, 2))
        torch.testing.assert_close(call.mass(), expected, atol=1e-6, rtol=1e-4)
    if "text" in inputs and calls[0].key.shape[2] > model.tokens:
        other = calls_of(model, inputs | {"text": inputs["text"].roll(1, 0) * 2 + 1})
        changed = (calls[0].key - other[0].key).abs().amax((0, 1, 3)) > 1e-5
        kinds = key_kinds(model, written, call.key.shape[2])
        assert (kinds[0, changed.numpy()] != IMAGE).all()
        assert changed[torch.from_numpy((kinds == TEXT).any(0))].all()


def test_memory_of_scores_does_not_change_the_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    call = calls_of(model, some_inputs(model))[0]
    whole = call.mass()
    monkeypatch.setattr("intaglio.analysis.channels.attention.SCORES", 1)
    torch.testing.assert_close(call.mass(), whole)


def test_padding_is_what_the_tokenizers_add() -> None:
    model = make_model()  # without T5, whose part of the text is zeros
    written = written_tokens(model)
    assert written is not None
    tokenizer = model.adapter.pipeline.tokenizer
    lengths = [len(tokenizer(prompt).input_ids) for prompt in PROMPTS]
    assert len(set(lengths)) > 1
    for row, length in zip(written, lengths, strict=True):
        np.testing.assert_array_equal(row, np.arange(len(row)) < length)


def plant(model: Model, block: int, name: str, token: int) -> None:
    """Let the queries of `block` share a direction, and give it to key `token` of a projection."""
    attention = model.adapter.blocks()[block].attn
    direction = torch.sign(torch.randn(64, generator=torch.Generator().manual_seed(0)))

    def add_to_queries(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 2 * direction

    def add_to_key(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, token] += 2 * direction
        return output

    attention.to_q.register_forward_hook(add_to_queries)
    getattr(attention, name).register_forward_hook(add_to_key)


def record(model: Model, path: Path) -> Statistics:
    return record_model(model, range(4), STEPS, path / "statistics.npz", points=[ATTENTION])


@pytest.mark.parametrize(
    ("name", "token", "key", "kind"),
    [
        ("to_k", 5, 5, "image"),
        ("add_k_proj", 0, 64, "text"),
        ("add_k_proj", 14, 78, "padding"),
    ],
)
def test_a_planted_sink_is_found(
    name: str, token: int, key: int, kind: str, tmp_path: Path
) -> None:
    model = make_model(planted=False)
    plant(model, 2, name, token)
    statistics = record(model, tmp_path)
    assert sinks(statistics) == {2: [key]}
    assert f"): {kind} key {key} (" in attention_claims(statistics)[1]
    np.testing.assert_allclose(statistics["attention.by_kind"].sum(2), 1, rtol=1e-5)
    np.testing.assert_allclose(statistics["attention.mass"].sum(2), 1, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_without_a_planted_sink_there_is_none(seed: int, tmp_path: Path) -> None:
    statistics = record(make_model(seed=seed), tmp_path)
    assert sinks(statistics) == {}
    assert "Attention sinks: none" in attention_claims(statistics)[1]


@pytest.mark.parametrize("masked", ["not", "bool", "float"])
def test_a_hidden_key_is_as_good_as_absent(masked: str) -> None:
    draw = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(3, 2, 7, 4, generator=draw) for _ in range(3))
    keep = torch.rand(3, 1, 7, 7, generator=draw) > 0.3
    keep |= torch.eye(7, dtype=torch.bool) | torch.eye(7, dtype=torch.bool).roll(1, 0)
    mask = {"not": None, "bool": keep, "float": torch.where(keep, 0.5, -torch.inf)}[masked]
    call = Attention(query, key, mask, 0.5, slice(None))
    hidden = torch.tensor([0, 3, 6])
    got = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=call.mask_without(hidden), scale=0.5
    )
    for i, one in enumerate(hidden):
        left = [k for k in range(7) if k != one]
        expected = functional.scaled_dot_product_attention(
            query[i], key[i, :, left], value[i, :, left],
            attn_mask=None if mask is None else mask[i, ..., left], scale=0.5,
        )  # fmt: skip
        torch.testing.assert_close(got[i], expected)


def test_hiding_takes_the_top_key_or_another_one() -> None:
    model = make_model(planted=False)
    plant(model, 2, "to_k", 5)
    inputs = some_inputs(model)
    plain = model.adapter.run(inputs)
    for which in ("top", "random"):
        runs = [hidden_in(model, inputs, which) for _ in range(2)]
        torch.testing.assert_close(*runs)
        prediction, masses = runs[0]
        assert (prediction - plain).abs().max() > 1e-6
        for block, mass in enumerate(masses):
            hidden = mass == 0
            assert (hidden.sum(1) == 1).all()
            if block == 2:
                assert (hidden[:, 5] == (which == "top")).all()


def hidden_in(model: Model, inputs: Inputs, which: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the prediction, and the mass of each block's call as torch gets it."""
    masses: list[torch.Tensor] = []

    def attend(block: int, call: Attention) -> None:
        masses.append(call.mass())

    # Hooks that are added first see what later ones changed.
    with attending(model, attend), hiding(model, which), torch.no_grad():
        return model.adapter.run(inputs), masses
