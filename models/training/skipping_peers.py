"""Skipping as others do it, on the torch model: diffusers' TaylorSeer and MagCache, and ProCache's
schedules. `skipping.py` compares them with the runtime.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import product
from typing import Any

import numpy as np
import torch
from diffusers.hooks import (
    HookRegistry,
    MagCacheConfig,
    TaylorSeerCacheConfig,
    apply_mag_cache,
    apply_taylorseer_cache,
)
from diffusers.models.cache_utils import CacheMixin
from numpy.typing import NDArray

from intaglio.analysis.reuse import line
from intaglio.analysis.skip_schedules import Trajectory
from intaglio.analysis.skipping import BATCH
from intaglio.torch_reference.guidance import Method, Suppressed, ramp, stack_rows, term
from intaglio.torch_reference.model import Model, Step
from intaglio.torch_reference.suppression import suppress_channels
from intaglio_export.adapters.base import Inputs

CHOOSING = range(16)  # seeds with which the best settings are chosen
Values = dict[str, NDArray[Any]]


class OneStep:
    """Runs D_0, D_c and D_m of a step in one batch of the whole transformer, so that hooks on its
    blocks see the same rows in every step."""

    def __init__(self, model: Model, method: Method, cache: Any = None) -> None:
        """`cache` is MagCache's StateManager; blocks that it skips pass on what they get, so that
        nothing is to be suppressed."""
        assert isinstance(method.negative, Suppressed)
        self._model, self._method, self._how = model, method, method.negative
        self._cache, self.skipped = cache, 0
        self._keep = 1.0

    def __call__(self, step: Step, conditional: Inputs, null: Inputs) -> torch.Tensor:
        n = len(step.latents)
        inputs = stack_rows([null, conditional, conditional]) | {
            "latent": torch.cat([step.latents] * 3),
            "timestep": step.timestep.expand(3 * n),
        }
        self._keep = ramp(self._how.ma_keep, step)
        with torch.no_grad():
            unconditional, guided, degraded = self._model.adapter.run(inputs).float().chunk(3)
        self.skipped += self._skips()
        return (
            guided
            + term(self._method.scale_at(step) - 1.0, guided, unconditional)
            + term(self._method.weight_at(step), guided, degraded)
        )

    def _skips(self) -> bool:
        return self._cache is not None and not self._cache.get_state().should_compute

    @contextmanager
    def suppressing(self) -> Iterator[None]:
        """Suppress the channels in the last third of the rows."""

        def suppress(_block: object, _args: object, output: tuple[Any, torch.Tensor]) -> Any:
            if self._skips():
                return output
            text, hidden = output
            rows = len(hidden) // 3
            degraded = suppress_channels(
                hidden[2 * rows :], self._how.channels, self._how.ref, self._keep
            )
            return text, torch.cat([hidden[: 2 * rows], degraded])

        block = self._model.adapter.transformer.transformer_blocks[self._how.block]
        handle = block.register_forward_hook(suppress)
        try:
            yield
        finally:
            handle.remove()


def sample(model: Model, predict: Any, seeds: Sequence[int], steps: int) -> Any:
    """Return final latents."""
    return model.sample(predict, seeds, steps).numpy()


def remove(model: Model) -> None:
    """Remove diffusers' hooks."""
    for module in model.adapter.transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name in list(registry.hooks) if registry else ():
            registry.remove_hook(name, recurse=False)


def taylorseer(
    model: Model, method: Method, seeds: Sequence[int], steps: int, how: dict[str, Any]
) -> Values:
    """Draw with diffusers' TaylorSeer of order 1 on the last projection, which is what its lite
    mode predicts; the blocks, whose results it does not use, run."""
    latents = []
    for first in range(0, len(seeds), BATCH):
        config = TaylorSeerCacheConfig(
            cache_identifiers=["proj_out"], taylor_factors_dtype=torch.float32, **how
        )
        apply_taylorseer_cache(model.adapter.transformer, config)
        predict = OneStep(model, method)
        with predict.suppressing(), CacheMixin.cache_context(model.adapter.transformer, "rows"):
            latents.append(sample(model, predict, seeds[first : first + BATCH], steps))
        remove(model)
    return {"latents": np.concatenate(latents)}


def taylorseer_settings(
    trajectory: Trajectory, steps: int, evaluations: int
) -> Iterator[dict[str, Any]]:
    """Yield the settings that run so many steps, those first that should be nearest to the exact
    run."""
    found = []
    for interval, before, after in product((2, 3, 4), range(2, 12), range(steps - 8, steps + 1)):
        skips = [
            i >= before and i < after and (i - before - 1) % interval != 0 for i in range(steps)
        ]
        if skips.count(False) == evaluations:
            how = {
                "cache_interval": interval,
                "disable_cache_before_step": before,
                "disable_cache_after_step": after,
            }
            # Its line runs over the numbers of steps.
            found.append((trajectory.error_of(skips, list(map(float, range(steps)))), how))
    yield from (how for _, how in sorted(found, key=lambda one: one[0]))


def magcache(
    model: Model, method: Method, seeds: Sequence[int], steps: int, how: dict[str, Any]
) -> Values:
    """Draw with diffusers' MagCache."""
    transformer = model.adapter.transformer
    latents, evaluations = [], []
    for first in range(0, len(seeds), BATCH):
        apply_mag_cache(transformer, MagCacheConfig(num_inference_steps=steps, **how))
        leader = HookRegistry.check_if_exists_or_initialize(transformer.transformer_blocks[0])
        cache = leader.get_hook("mag_cache_leader_block_hook").state_manager
        predict = OneStep(model, method, cache)
        some = seeds[first : first + BATCH]
        with predict.suppressing(), CacheMixin.cache_context(model.adapter.transformer, "rows"):
            latents.append(sample(model, predict, some, steps))
        evaluations += [steps - predict.skipped] * len(some)
        remove(model)
    return {"latents": np.concatenate(latents), "evaluations": np.array(evaluations)}


def magnitude_ratios(model: Model, method: Method, steps: int) -> list[float]:
    """Return what MagCache's calibration prints."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        magcache(model, method, CHOOSING, steps, {"calibrate": True})
    found: list[float] = json.loads(
        next(t for t in printed.getvalue().split("\n") if t[:1] == "[" and t[1:2].isdigit())
    )
    return found


def magcache_settings(
    model: Model, method: Method, steps: int, evaluations: int
) -> Iterator[dict[str, Any]]:
    """Yield the smallest thresholds that run so many steps, for each start and longest skip."""
    ratios = magnitude_ratios(model, method, steps)
    for start, longest in product((0.15, 0.2, 0.3), (2, 3)):
        for threshold in np.geomspace(1e-3, 1.0, 200):
            if magcache_runs(ratios, start, longest, threshold) <= evaluations:
                break
        if magcache_runs(ratios, start, longest, threshold) == evaluations:
            yield {
                "mag_ratios": ratios,
                "retention_ratio": start,
                "max_skip_steps": longest,
                "threshold": float(threshold),
            }


def magcache_runs(ratios: Sequence[float], start: float, longest: int, threshold: float) -> int:
    """Return how many steps MagCache's rule runs."""
    first, runs = int(start * len(ratios) + 0.5), 0
    ratio, error, skipped = 1.0, 0.0, 0
    for step, here in enumerate(ratios):
        if step < first:
            runs += 1
            continue
        ratio, skipped = ratio * here, skipped + 1
        error += abs(1.0 - ratio)
        if error > threshold or skipped > longest:
            ratio, error, skipped, runs = 1.0, 0.0, 0, runs + 1
    return runs


def procache(
    model: Model, method: Method, seeds: Sequence[int], steps: int, how: dict[str, Any]
) -> Values:
    """Draw with the steps `how["runs"]`, and the line through the last two D in between."""
    skips = [(True, step not in how["runs"]) for step in range(steps)]
    guided = method.predictor(model)
    latents = []
    for first in range(0, len(seeds), BATCH):
        timesteps: list[float] = []
        found: list[torch.Tensor] = []

        def predict(
            step: Step, conditional: Inputs, null: Inputs, timesteps: Any = timesteps,
            found: Any = found,
        ) -> torch.Tensor:  # fmt: skip
            timesteps.append(float(step.timestep))
            if not skips[step.index][1]:
                found.append(guided(step, conditional, null))
                return found[-1]
            shares = line(skips[: step.index + 1], timesteps)[-1]
            found.append(
                sum(float(share) * d for share, d in zip(shares, found, strict=False) if share)
            )
            return found[-1]

        latents.append(sample(model, predict, seeds[first : first + BATCH], steps))
    return {"latents": np.concatenate(latents)}


def procache_settings(
    trajectory: Trajectory, steps: int, evaluations: int
) -> Iterator[dict[str, Any]]:
    """Yield schedules whose intervals never grow, those first that should be nearest to the exact
    run. ProCache samples a few of them and keeps the best."""
    rng = np.random.default_rng(0)
    found: dict[tuple[int, ...], float] = {}
    for _ in range(20000):
        shares = rng.dirichlet(np.full(evaluations, 0.5))
        intervals = np.sort(1 + rng.multinomial(steps - evaluations, shares))[::-1]
        runs = tuple(np.concatenate([[0], np.cumsum(intervals)[:-1]]).tolist())
        if runs not in found and intervals[0] <= 5:
            skips = [step not in runs for step in range(steps)]
            found[runs] = trajectory.error_of(skips, trajectory.timesteps)
    yield from ({"runs": runs} for runs in sorted(found, key=lambda runs: found[runs]))
