"""What a step callback reads of the blocks, against hooks on the diffusers transformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import intaglio
from intaglio import _core
from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import BLOCKS
from tests.python.conftest import PROMPT
from tests.python.test_command import command

NEGATIVE = "a shoe"
IMAGES = 2
Observed = dict[tuple[str, int], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def observed(observed_bundle: Path) -> intaglio.Pipeline:
    """The tiny pipeline exported with --observe, in each layout."""
    return intaglio.Pipeline.open(observed_bundle)


@pytest.fixture(scope="module")
def text(sd3_pipeline: StableDiffusion3Pipeline) -> Callable[[str], tuple[Any, Any]]:
    """Return one row of the transformer's text and pooled inputs for a prompt."""

    def encode(prompt: str) -> tuple[Any, Any]:
        made = sd3_pipeline.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=MAX_LENGTH
        )
        return made[0], made[2]

    return encode


def seen_by_hooks(
    transformer: Any, latents: np.ndarray[Any, Any], timestep: float, text: tuple[Any, Any],
    suppressed: _core.MassiveActivations | None = None,
) -> Observed:  # fmt: skip
    """Return the image stream after every block, and its gate, for the rows of one branch."""
    seen: Observed = {}
    handles = []
    for k, block in enumerate(transformer.transformer_blocks):

        def gate(module: Any, args: Any, output: Any, k: int = k) -> None:
            seen["gate", k] = output[1].numpy()

        def after(module: Any, args: Any, output: Any, k: int = k) -> Any:
            prompt, z = output
            seen["hidden_states", k] = z.numpy()
            if suppressed and suppressed.block == k:
                z = z.clone()
                z[..., suppressed.channels] = 0
            return prompt, z

        handles.append(block.norm1.register_forward_hook(gate))
        handles.append(block.register_forward_hook(after))
    rows = len(latents)
    with torch.no_grad():
        transformer(
            hidden_states=torch.from_numpy(latents),
            timestep=torch.full((rows,), timestep),
            encoder_hidden_states=text[0].expand(rows, -1, -1),
            pooled_projections=text[1].expand(rows, -1),
        )
    for handle in handles:
        handle.remove()
    return seen


def run(pipeline: intaglio.Pipeline, start: np.ndarray[Any, Any], **options: Any) -> list[Any]:
    """Return for each step its timestep, the latents it started from, and all that is observed."""
    steps: list[Any] = []
    latents = [start]

    def on_step(step: intaglio.Step) -> None:
        told = {
            (r, k): getattr(step, r)(k) for r in ("hidden_states", "gate") for k in range(BLOCKS)
        }
        steps.append((step.timestep, latents[-1], told))
        latents.append(step.latents.copy())

    pipeline.generate(
        PROMPT, negative_prompt=NEGATIVE, latents=start, batch=IMAGES, on_step=on_step, **options
    )
    return steps


def test_a_step_tells_what_hooks_see(
    observed: intaglio.Pipeline,
    sd3_pipeline: StableDiffusion3Pipeline,
    text: Callable[[str], tuple[Any, Any]],
) -> None:
    """Steps with D_c alone, with D_0 too, with D_m too, and with all three."""
    start = np.random.default_rng(0).standard_normal((IMAGES, 4, 16, 16), np.float32)
    windows = {"cfg_window": (0.5, 1.0), "dg_window": (0.25, 0.75)}
    steps = run(observed, start, steps=4, cfg_scale=3.0, dg_scale=1.0, **windows)
    ma = observed.bundle.massive_activations
    transformer = sd3_pipeline.transformer
    cases = zip(steps, (False, False, True, True), (False, True, True, False), strict=True)
    for (timestep, latents, told), cfg, dg in cases:
        d_0 = seen_by_hooks(transformer, latents, timestep, text(NEGATIVE)) if cfg else None
        d_c = seen_by_hooks(transformer, latents, timestep, text(PROMPT))
        forked = dg and observed.bundle.layout == "forked"
        d_m = seen_by_hooks(transformer, latents, timestep, text(PROMPT), ma) if forked else None
        for key, got in told.items():
            assert got.dtype == np.float32
            branches = [d_0, d_c, d_m if key[1] > ma.block else None]
            expected = np.concatenate([seen[key] for seen in branches if seen])
            assert got.shape == expected.shape
            assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected), key


def test_what_is_told_may_be_kept(observed: intaglio.Pipeline) -> None:
    """It is a copy: later steps do not change it, and writing into it changes nothing."""
    kept: list[np.ndarray[Any, Any]] = []
    copies: list[np.ndarray[Any, Any]] = []

    def on_step(step: intaglio.Step) -> None:
        kept.append(step.hidden_states(2))
        copies.append(kept[-1].copy())
        step.hidden_states(1)[:] = np.nan

    watched = observed.generate(PROMPT, on_step=on_step)
    np.testing.assert_array_equal(kept, copies)
    assert not np.allclose(kept[0], kept[1])
    np.testing.assert_array_equal(watched.latents, observed.generate(PROMPT).latents)


def test_heun_tells_the_second_evaluation(observed: intaglio.Pipeline) -> None:
    """It is at the timestep from which the next step starts, but at different latents."""
    seen: list[tuple[float, np.ndarray[Any, Any]]] = []
    for scheduler in ("heun", "euler"):
        observed.generate(
            PROMPT,
            steps=2,
            scheduler=scheduler,
            on_step=lambda s: seen.append((s.timestep, s.gate(0))),
        )
    heun, _, first, second = seen
    assert heun[0] == pytest.approx(second[0])
    # SD3's gates depend on the timestep and the prompt, not on the latents.
    np.testing.assert_allclose(heun[1], second[1], atol=1e-5)
    assert not np.allclose(heun[1], first[1], atol=1e-4)


def test_the_timestep_is_the_schedulers(
    pipeline: intaglio.Pipeline, sd3_pipeline: StableDiffusion3Pipeline
) -> None:
    timesteps: list[float] = []
    pipeline.generate(PROMPT, steps=4, on_step=lambda s: timesteps.append(s.timestep))
    scheduler = type(sd3_pipeline.scheduler).from_config(sd3_pipeline.scheduler.config)
    scheduler.set_timesteps(4)
    np.testing.assert_allclose(timesteps, scheduler.timesteps, rtol=1e-6)


def test_the_bundle_says_that_it_is_observed(
    observed: intaglio.Pipeline, forked: intaglio.Pipeline
) -> None:
    for pipeline in (observed, forked):
        shown = json.loads(command("inspect", str(pipeline.bundle.folder), "--json").stdout)
        assert shown["observed"] == pipeline.bundle.observed == (pipeline is observed)


def test_it_draws_what_an_ordinary_bundle_draws(
    observed: intaglio.Pipeline, forked: intaglio.Pipeline
) -> None:
    plain = forked.generate(PROMPT).latents
    np.testing.assert_allclose(observed.generate(PROMPT).latents, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", [-1, BLOCKS])
def test_a_block_that_is_not_there(observed: intaglio.Pipeline, block: int) -> None:
    with pytest.raises(intaglio.UsageError, match=rf"no block {block}: its blocks are 0 to 3"):
        observed.generate(PROMPT, on_step=lambda s: s.hidden_states(block) is not None)


def test_a_skipped_step_has_nothing_to_read(observed: intaglio.Pipeline) -> None:
    read: list[int] = []

    def on_step(step: intaglio.Step) -> None:
        if step.step == 3:
            for output in (step.hidden_states, step.gate):
                with pytest.raises(intaglio.UsageError, match="step 3 was skipped"):
                    output(0)
        else:
            read.append(len(step.hidden_states(0)))

    options = {"cfg_scale": 2.0, "skip_interval": 2, "skip_tolerance": 1000.0}
    got = observed.generate(PROMPT, steps=5, on_step=on_step, **options)
    assert got.skipped_steps == [3]
    assert len(read) == 4


@pytest.mark.parametrize("output", ["hidden_states", "gate"])
def test_an_ordinary_bundle_says_what_to_do(pipeline: intaglio.Pipeline, output: str) -> None:
    with pytest.raises(
        intaglio.UsageError, match=f"no {output} to read: export it again with --observe"
    ):
        pipeline.generate(PROMPT, on_step=lambda s: getattr(s, output)(0) is not None)


def test_after_the_call_there_is_nothing_to_read(observed: intaglio.Pipeline) -> None:
    steps: list[intaglio.Step] = []
    observed.generate(PROMPT, steps=1, on_step=steps.append)
    for read in (steps[0].hidden_states, steps[0].gate):
        with pytest.raises(intaglio.UsageError, match="inside the step callback"):
            read(0)
