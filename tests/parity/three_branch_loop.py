"""Sampling with up to three branches a step, as plain hooks on a diffusers SD3 transformer.

    D = D_c + lambda (D_c - D_0) + w (D_c - D_m),   cfg_scale = 1 + lambda,   dg_scale = w

D_m is the conditional branch in which channels of the image stream after one block are pulled
towards a reference (Detail Guidance, arXiv 2510.11538). Tests compare the runtime and
`intaglio.torch_reference` with this loop, so it imports nothing of this project. It copies no model
code and works in the scheduler's own numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

Window = tuple[float, float]
Interval = float | tuple[float, float]
# Combines D_c and D_0, with the step, the latents and their sigma before: (step, x, sigma, c, u).
Rule = Callable[[int, torch.Tensor, float, torch.Tensor, torch.Tensor], torch.Tensor]
Keep = float | torch.Tensor | Callable[[int, int], float | torch.Tensor]


@dataclass(frozen=True)
class Prompt:
    """The result of `encode_prompt`: `words` [n, S, D] and `pooled` [n, P]."""

    words: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class Suppression:
    """The channels that D_m suppresses after block `block`, and how strongly.

    `mask` [C] is 1 on the channels and 0 elsewhere; `ref` [C] is their target (zeros when None).
    `keep` is 1 to leave a token alone and 0 to suppress it: a number, a tensor that broadcasts to
    [n, T], or a function of (step, steps) that gives either.
    """

    block: int
    mask: torch.Tensor
    ref: torch.Tensor | None = None
    keep: Keep = 0.0

    @classmethod
    def of(cls, block: int, channels: Sequence[int], width: int, keep: Keep = 0.0) -> Suppression:
        """Suppress `channels` of a stream with `width` channels towards zero."""
        mask = torch.zeros(width)
        mask[list(channels)] = 1.0
        return cls(block, mask, None, keep)


def suppress(
    hidden: torch.Tensor, mask: torch.Tensor, ref: torch.Tensor, keep: torch.Tensor
) -> torch.Tensor:
    """Return x = `hidden` [n, T, C] where a = mask * (1 - keep) is 0, else (1 - a) x + a ref.

    `mask` and `ref` are [C], `keep` is [n, T] or broadcasts to it; the result has hidden's dtype.
    """
    amount = mask.float() * (1.0 - keep.float()).unsqueeze(-1)
    x = hidden.float()
    return torch.where(amount == 0.0, x, (1.0 - amount) * x + amount * ref.float()).to(hidden.dtype)


def inside(window: Window, step: int, steps: int) -> bool:
    """Return whether solver step `step` of `steps` is in [start, end)."""
    return window[0] <= step / steps < window[1]


@contextlib.contextmanager
def suppressed_rows(
    transformer: torch.nn.Module, how: Suppression, keep: float | torch.Tensor, rows: int
) -> Iterator[None]:
    """Suppress the last `rows` rows of every forward after the block."""
    keep = torch.as_tensor(keep, dtype=torch.float32)
    keep = keep.expand(rows, 1) if keep.ndim == 0 else keep
    ref = torch.zeros_like(how.mask) if how.ref is None else how.ref

    def hook(module: torch.nn.Module, args: Any, output: tuple) -> tuple:
        words, hidden = output
        changed = suppress(hidden[-rows:], how.mask, ref, keep)
        return words, torch.cat([hidden[:-rows], changed])

    handle = transformer.transformer_blocks[how.block].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def branches(
    transformer: torch.nn.Module,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    cond: Prompt,
    null: Prompt | None = None,
    how: Suppression | None = None,
    keep: float | torch.Tensor = 0.0,
) -> dict[str, torch.Tensor]:
    """Return raw outputs [n, c, h, w] of D_c ("c"), D_0 ("0") and D_m ("m") for `latents`.

    D_0 runs if `null` is given and D_m if `how` is. All rows run in one batch, in the order D_0,
    D_c, D_m.
    """
    prompts = [p for p in (null, cond, cond if how else None) if p is not None]
    names = [k for k, wanted in (("0", null), ("c", cond), ("m", how)) if wanted is not None]
    n = len(latents)
    scope = suppressed_rows(transformer, how, keep, n) if how else contextlib.nullcontext()
    dtype = transformer.dtype
    with scope:
        out = transformer(
            hidden_states=torch.cat([latents] * len(prompts)).to(dtype),
            encoder_hidden_states=torch.cat([p.words for p in prompts]).to(dtype),
            pooled_projections=torch.cat([p.pooled for p in prompts]).to(dtype),
            timestep=timestep.expand(n * len(prompts)),
            return_dict=False,
        )[0]
    return dict(zip(names, out.float().chunk(len(prompts)), strict=True))


class Deltas:
    """The differences D_c - D_0 ("0") and D_c - D_m ("m"), computed or extrapolated.

    A branch runs every `interval`-th step inside `window`; a pair goes linearly from the first step
    to the last and is rounded down. In between, its difference is extrapolated over the timestep
    from the last two that were computed. A branch that had no weight in the step before runs.
    """

    def __init__(self, interval: Interval = 1.0, window: Window = (0.0, 1.0)) -> None:
        self.interval = interval if isinstance(interval, tuple) else (interval, interval)
        self.window = window
        # Step, timestep and difference of each run of a branch since it last had no weight.
        self.runs: dict[str, list[tuple[int, float, torch.Tensor]]] = {"0": [], "m": []}

    def due(self, branch: str, step: int, steps: int) -> bool:
        """Return whether `branch`, which has weight, has to run; the same for all evaluations of a
        step."""
        runs = self.runs[branch]
        first, last = self.interval
        interval = math.floor(first + (last - first) * step / max(steps - 1, 1) + 1e-9)
        if not runs or runs[-1][0] == step or not inside(self.window, step, steps):
            return True
        return step - runs[-1][0] >= interval

    def ran(self, branch: str, step: int, timestep: float, delta: torch.Tensor) -> None:
        """Keep the difference of an evaluation."""
        self.runs[branch].append((step, timestep, delta))

    def keep(
        self,
        weights: dict[str, float],
        due: dict[str, bool],
        step: int,
        timestep: float,
        out: dict[str, torch.Tensor],
    ) -> None:
        """Keep the differences of an evaluation, and drop those of branches without weight."""
        for branch, weight in weights.items():
            if weight == 0.0:
                self.runs[branch].clear()
            elif due[branch]:
                self.ran(branch, step, timestep, out["c"] - out[branch])

    def at(self, branch: str, timestep: float) -> torch.Tensor:
        """Return the extrapolated difference."""
        _, newer_at, newer = self.runs[branch][-1]
        if len(self.runs[branch]) == 1:
            return newer
        _, older_at, older = self.runs[branch][-2]
        if newer_at == older_at:
            return newer
        return newer + (timestep - newer_at) / (newer_at - older_at) * (newer - older)


class Skips:
    """The guided D of steps in which the model does not run.

    It runs every `interval`-th step inside `window`, or in all but the `listed` steps, and in the
    first three steps with the same branches. In between, D is on the straight line over the
    timestep through the last two D that were computed at different timesteps. Where the line was
    off by more than `tolerance`, relative to the last D that was computed, a step runs after all.
    Several images share this decision.
    """

    def __init__(
        self, interval: Interval, window: Window, tolerance: float, listed: Sequence[int] = ()
    ) -> None:
        self.listed = listed
        self.interval = interval if isinstance(interval, tuple) else (interval, interval)
        self.window, self.tolerance = window, tolerance
        self.points: list[tuple[float, torch.Tensor]] = []  # timestep and D
        self.branches: list[bool] = []
        self.planned: list[int] = []  # steps that are to run, since the branches changed
        self.now = -1
        self.skips = False
        self.off = 0.0  # in the last step that ran
        self.skipped: list[int] = []

    def due(self, step: int, steps: int, branches: list[bool]) -> bool:
        """Return whether the step runs. It must be asked for every evaluation."""
        if step == self.now:
            return not self.skips
        self.now = step
        if branches != self.branches:
            self.branches = branches
            self.points, self.planned = [], []
        first, last = self.interval
        interval = math.floor(first + (last - first) * step / max(steps - 1, 1) + 1e-9)
        may_skip = len(self.planned) > 2
        if self.listed:
            may_skip = may_skip and step in self.listed
        else:
            may_skip = may_skip and inside(self.window, step, steps)
            may_skip = may_skip and step - self.planned[-1] < interval
        if not may_skip:
            self.planned.append(step)
        self.skips = may_skip and self.off <= self.tolerance
        if self.skips:
            self.skipped.append(step)
        else:
            self.off = 0.0
        return not self.skips

    def at(self, timestep: float) -> torch.Tensor:
        """Return D on the line."""
        (older_at, older), (newer_at, newer) = self.points[-2:]
        share = (timestep - older_at) / (newer_at - older_at)
        return (1 - share) * older + share * newer

    def computed(self, timestep: float, guided: torch.Tensor) -> None:
        """Keep the D of an evaluation that ran."""
        if len(self.points) > 1:
            missed = (guided - self.at(timestep)).flatten(1).norm(dim=1)
            self.off = max(self.off, float((missed / guided.flatten(1).norm(dim=1)).max()))
        if self.points and self.points[-1][0] == timestep:
            self.points.pop()
        self.points.append((timestep, guided))


def combined(
    conditional: torch.Tensor,
    weights: dict[str, float],
    deltas: Deltas,
    timestep: float,
    rule: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
) -> torch.Tensor:
    """Return D of D_c and the differences; `rule` of D_c and D_0 takes the place of CFG's."""
    guided = conditional
    for branch, weight in weights.items():
        if weight == 0.0:
            continue
        delta = deltas.at(branch, timestep)
        if rule and branch == "0":
            guided = rule(conditional, conditional - delta)
        else:
            guided = guided + weight * delta
    return guided


@torch.no_grad()
def sample(
    transformer: torch.nn.Module,
    scheduler: Any,
    latents: torch.Tensor,
    cond: Prompt,
    null: Prompt | None = None,
    *,
    steps: int,
    cfg_scale: float = 1.0,
    dg_scale: float = 0.0,
    how: Suppression | None = None,
    cfg_window: Window = (0.0, 1.0),
    dg_window: Window = (0.0, 1.0),
    reuse_interval: Interval = 1.0,
    reuse_window: Window = (0.0, 1.0),
    skips: Skips | None = None,
    rule: Rule | None = None,
    corrected: Callable[[torch.Tensor], torch.Tensor] | None = None,
    moved: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    weights_of: Callable[[int], dict[str, float]] | None = None,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Return the final latents [n, c, h, w] float32 of initial `latents`.

    `scheduler` is any of diffusers (Euler, Heun, DPM-Solver++ 2M); its timesteps and sigmas are
    used as they are. A branch of weight zero at a step is not run. Heun's two evaluations belong to
    one solver step. `Deltas` describes `reuse_interval` and `reuse_window`.
    `skips` says which steps do not run. `rule` takes the place of CFG's formula.
    `corrected` changes D, and `moved` the latents after a step, given those before it.
    `weights_of` gives the weights of a step.
    `on_step(evaluation, latents)` is called after every evaluation.
    Raises ValueError if guidance is requested without `null` or `how`.
    """
    if cfg_scale != 1.0 and null is None:
        raise ValueError("cfg_scale other than 1 needs `null`, the embedding of the null prompt")
    if dg_scale != 0.0 and how is None:
        raise ValueError("dg_scale other than 0 needs `how`, the channels to suppress")
    scheduler.set_timesteps(steps)
    latents = latents.float() * getattr(scheduler, "init_noise_sigma", 1.0)
    deltas = Deltas(reuse_interval, reuse_window)
    for evaluation, timestep in enumerate(scheduler.timesteps):
        step = evaluation // scheduler.order
        cfg, dg = inside(cfg_window, step, steps), inside(dg_window, step, steps)
        weights = {"0": cfg * (cfg_scale - 1.0), "m": dg * dg_scale}
        if weights_of:
            weights = weights_of(step)
        due = {
            branch: weights[branch] != 0.0 and deltas.due(branch, step, steps) for branch in weights
        }
        if skips and not skips.due(step, steps, [weight != 0.0 for weight in weights.values()]):
            guided, before = skips.at(float(timestep)), latents
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
            latents = moved(before, latents) if moved else latents
            continue
        keep = how.keep(step, steps) if how and callable(how.keep) else how.keep if how else 0.0
        model_input = latents
        if hasattr(scheduler, "scale_model_input"):
            model_input = scheduler.scale_model_input(latents, timestep)
        out = branches(
            transformer,
            model_input,
            timestep,
            cond,
            null if due["0"] else None,
            how if due["m"] else None,
            keep,
        )
        deltas.keep(weights, due, step, float(timestep), out)
        applied = rule and partial(rule, step, latents, float(scheduler.sigmas[evaluation]))
        guided = combined(out["c"], weights, deltas, float(timestep), applied)
        if corrected:
            guided = corrected(guided)
        if skips:
            skips.computed(float(timestep), guided)
        before = latents
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        if moved:
            latents = moved(before, latents)
        if on_step:
            on_step(evaluation, latents)
    return latents
