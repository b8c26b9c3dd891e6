"""What every runtime is given, and the loop that those without one of their own run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from benchmarks.bench.plain import draw_latents, draw_text, fixed_inputs
from intaglio_export.adapters import Adapter
from intaglio_export.adapters.base import Inputs

Array = np.ndarray[Any, np.dtype[np.float32]]
# The raw prediction of each row of the inputs by role, `factors` among them (see plain.py).
Predict = Callable[[Inputs], torch.Tensor]
CFG_SCALE, DG_SCALE = 3.0, 1.0
MODES = {"baseline": (1.0, 0.0), "cfg": (CFG_SCALE, 0.0), "dg": (1.0, DG_SCALE)}
MODES["cfg+dg"] = (CFG_SCALE, DG_SCALE)


@dataclass(frozen=True)
class Workload:
    """Images to draw: `images` of `side` x `side` tokens in `steps` steps, guided as `mode` says.

    Noise and prompt embeddings are random and the same for equal sizes.
    """

    adapter: Adapter
    side: int
    text_tokens: int
    images: int = 1
    steps: int = 2
    mode: str = "cfg+dg"
    latents: torch.Tensor = field(init=False)
    text: Inputs = field(init=False)  # rows of the negative prompt and of the prompt

    def __post_init__(self) -> None:
        latents = draw_latents(self.adapter, self.images, self.side)
        object.__setattr__(self, "latents", latents)
        object.__setattr__(self, "text", draw_text(self.adapter, 2, self.text_tokens))

    def with_(self, **changes: Any) -> Workload:
        """The same with `changes`."""
        return replace(self, **changes)

    @property
    def pixels(self) -> int:
        """Along a side."""
        return self.side * self.adapter.patch_size * self.adapter.latent().vae_scale_factor

    @property
    def scales(self) -> tuple[float, float]:
        """cfg_scale and dg_scale."""
        return MODES[self.mode]


@dataclass(frozen=True)
class Sample:
    """Seconds from the call to the final latents, those latents, and what else was seen."""

    seconds: float
    latents: Array
    seen: Any = None


def sample(predict: Predict, workload: Workload) -> Sample:
    """The three-branch formula over diffusers' own scheduler; all rows are given to `predict`.

    D = D_c + (cfg_scale - 1) (D_c - D_0) + dg_scale (D_c - D_m)
    """
    began = time.perf_counter()
    adapter, n = workload.adapter, workload.images
    cfg_scale, dg_scale = workload.scales
    prompts = ([0] if cfg_scale != 1.0 else []) + [1] + ([1] if dg_scale != 0.0 else [])
    rows = torch.tensor(prompts).repeat_interleave(n)
    constants = {role: value[rows] for role, value in workload.text.items()}
    constants |= fixed_inputs(adapter, workload.side)
    factors = torch.ones(len(rows))
    if dg_scale != 0.0:
        factors[-n:] = 0.0
    scheduler = adapter.scheduler(workload.steps, workload.side**2)
    x = workload.latents
    for timestep in scheduler.timesteps:
        inputs = constants | {
            "latent": x.repeat(len(prompts), *[1] * (x.ndim - 1)),
            "timestep": timestep.float().expand(len(rows)).contiguous(),
            "factors": factors,
        }
        guided = _combine(predict(inputs).split(n), cfg_scale, dg_scale)
        x = scheduler.step(guided, timestep, x, return_dict=False)[0]
    return Sample(time.perf_counter() - began, x.numpy())


def _combine(rows: tuple[torch.Tensor, ...], cfg_scale: float, dg_scale: float) -> torch.Tensor:
    conditional = rows[1 if cfg_scale != 1.0 else 0]
    result = conditional
    if cfg_scale != 1.0:
        result = result + (cfg_scale - 1.0) * (conditional - rows[0])
    if dg_scale != 0.0:
        result = result + dg_scale * (conditional - rows[-1])
    return result
