"""Compare activation transport with hooks on diffusers' transformers, in whole runs."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch

import intaglio
from tests import bundles
from tests.families import FAMILIES
from tests.parity.diffusers_runs import (
    HEIGHT,
    IMAGES,
    NEGATIVE,
    PROMPT,
    SEED,
    STEPS,
    _arguments,
    _conditioning,
    _run,
)

CFG = 3.0
# The upper half of the picture, whose tokens come first.
UPPER = np.zeros((HEIGHT, HEIGHT), np.uint8)
UPPER[: HEIGHT // 2] = 255


def relative(got: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.linalg.norm(got - expected.numpy()) / np.linalg.norm(expected.numpy()))


def transported(
    pipeline: Any, source: dict[str, Any], block: int, channels: list[int], negative: bool
) -> Callable[..., Any]:
    """Return a forward that takes `channels` of the upper half from the prompt `source`.

    The same prompt is the negative one if there is any.
    """
    transformer = pipeline.transformer
    forward, at = transformer.forward, transformer.transformer_blocks[block]

    def guided(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        seen: list[torch.Tensor] = []

        def predict(hook: Any, **changes: Any) -> torch.Tensor:
            call = signature(forward).bind(*args, **kwargs, return_dict=False)
            call.arguments.update(changes)
            handle = at.register_forward_hook(hook)
            try:
                made: torch.Tensor = forward(*call.args, **call.kwargs)[0]
            finally:
                handle.remove()
            return made

        def look(module: Any, args: Any, output: Any) -> None:
            seen.append(output[1].clone())

        def take(module: Any, args: Any, output: Any) -> Any:
            words, hidden = output
            half = hidden.shape[1] // 2
            hidden = hidden.clone()
            hidden[:, :half, channels] = seen[0][:, :half, channels]
            return words, hidden

        other = predict(look, **source)
        conditional = predict(take)
        if not negative:
            return (conditional,)
        return (conditional + (CFG - 1) * (conditional - other),)

    return guided


@pytest.mark.parametrize("cfg", [1.0, CFG])
@pytest.mark.parametrize(
    ("name", "options", "limit"),
    [
        ("sd3", {}, 1e-4),
        ("sd3", {"quantize": "int8-dynamic"}, 1e-3),
        ("flux-dedistilled", {}, 1e-4),
    ],
    ids=["sd3", "sd3-int8", "flux-dedistilled"],
)
def test_channels_come_from_the_other_prompt(
    name: str,
    options: dict[str, Any],
    limit: float,
    cfg: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In int8-dynamic the other prompt's rows are coded as differences from those that take."""
    family = FAMILIES[name]
    pipeline = family.make()
    opened = intaglio.Pipeline.open(bundles.bundle(name, **options), threads=1)
    # Channels and masks that change the picture much, in a model without massive channels.
    channels = list(range(0, opened.bundle.channels, 2))
    block = opened.bundle.massive_activations.block
    source = _conditioning(pipeline, family)
    arguments = _arguments(pipeline, family) | {family.cfg: family.unguided}
    plain = _run(pipeline, arguments).latents
    forward = transported(pipeline, source, block, channels, negative=cfg != 1)
    monkeypatch.setattr(pipeline.transformer, "forward", forward)
    expected = _run(pipeline, _arguments(pipeline, family) | {family.cfg: family.unguided}).latents
    got = opened.generate(
        PROMPT, seeds=SEED, batch=IMAGES, steps=STEPS, height=HEIGHT, width=family.width,
        cfg_scale=cfg, negative_prompt=NEGATIVE if cfg != 1 else "",
        transport_from=NEGATIVE, ma_channels=channels, ma_tokens=UPPER,
    )  # fmt: skip
    assert relative(got.latents, expected) < limit
    assert got.degraded_steps == []
    if cfg == 1:
        assert relative(plain.numpy(), expected) > 10 * limit


def test_transport_from_the_same_prompt_or_of_nothing_changes_nothing() -> None:
    pipeline = intaglio.Pipeline.open(bundles.bundle("sd3", "forked"), threads=1)
    drawn: dict[str, Any] = {"prompt": PROMPT, "seeds": SEED, "steps": 2, "cfg_scale": CFG}
    plain = pipeline.generate(**drawn, dg_scale=0.0).latents
    same = pipeline.generate(**drawn, transport_from=PROMPT).latents
    assert relative(same, torch.from_numpy(plain)) < 1e-6
    black = np.zeros((32, 32), np.uint8)
    none = pipeline.generate(**drawn, transport_from=NEGATIVE, ma_tokens=black).latents
    assert relative(none, torch.from_numpy(plain)) < 1e-6
    other = pipeline.generate(**drawn, transport_from=NEGATIVE).latents
    assert relative(other, torch.from_numpy(plain)) > 1e-4


_SHARED: dict[str, Any] = {"prompt": PROMPT, "cfg_scale": CFG, "ma_channels": [1, 2, 3, 4, 5]}
_MANY: dict[str, Any] = {"prompt": PROMPT, "cfg_scale": 5.0, "ma_channels": list(range(32))}


@pytest.mark.parametrize(
    "requests",
    [
        [
            _SHARED | {"seeds": 1, "steps": 2, "transport_from": NEGATIVE, "dg_window": (0.5, 1.0)},
            _SHARED | {"seeds": 2, "steps": 4, "transport_from": "a bag", "dg_window": (0.0, 0.5)},
            _SHARED | {"seeds": 3, "steps": 3, "transport_from": NEGATIVE, "ma_tokens": UPPER},
        ],
        # When the first has left, rows of D_c become rows of D_0.
        [
            _MANY | {"seeds": seed, "steps": steps, "transport_from": NEGATIVE}
            for seed, steps in ((4, 2), (5, 5))
        ],
    ],
)
def test_requests_that_transport_share_a_batch(requests: list[dict[str, Any]]) -> None:
    """Members join, take channels in other steps, and leave; rows go to others."""
    pipeline = intaglio.Pipeline.open(bundles.bundle("sd3", "forked"), threads=1)
    batch = intaglio.Batch(pipeline, 2)
    waiting, places, done = list(requests), [], {}
    while waiting or len(batch):
        while waiting and batch.accepts(**waiting[0]):
            places.append(batch.add(**waiting.pop(0)))
        done |= {step.id: step.finish() for step in batch.step() if step.done}
    for place, request in zip(places, requests, strict=True):
        alone = pipeline.generate(**request).latents
        assert relative(done[place].latents, torch.from_numpy(alone)) < 1e-5


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("dual", {}, "has no input for it"),
        ("forked", {"dg_scale": 1.0}, "takes the place of DG"),
        ("forked", {"slg_layers": [1]}, "takes the place of DG"),
    ],
)
def test_what_does_not_fit_is_refused(layout: str, options: dict[str, Any], message: str) -> None:
    pipeline = intaglio.Pipeline.open(bundles.bundle("sd3", layout), threads=1)
    with pytest.raises(intaglio.UsageError, match=message):
        pipeline.generate(PROMPT, transport_from=NEGATIVE, **options)
