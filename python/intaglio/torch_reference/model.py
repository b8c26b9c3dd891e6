"""A diffusers model that is ready to sample: encoded prompts, noise by seed, the denoising loop.

The loop calls diffusers' own scheduler with the guided prediction, which `guidance.py` computes.
Everything is float32, except where the model itself has a lower precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio_export.adapters import Adapter
from intaglio_export.adapters.base import Inputs
from intaglio_export.adapters.packing import unpack
from intaglio_export.calibration.calibrate import calibration_grid, draw_noise, encode, fixed_inputs


@dataclass(frozen=True)
class Step:
    """One evaluation of the model for N images: latents x [N, ...] at step `index` of `steps`.

    x - sigma * prediction is the clean image, up to a factor.
    """

    latents: torch.Tensor
    timestep: torch.Tensor
    index: int
    steps: int
    sigma: float

    @property
    def share(self) -> float:
        """The share of the run before this step. Guidance windows are compared with it."""
        return self.index / self.steps


# Returns the guided prediction of a step, given the conditional and the unconditional inputs.
Predict = Callable[[Step, Inputs, Inputs], torch.Tensor]
Watch = Callable[[Step, torch.Tensor], None]


class Model:
    """An adapter with its prompts encoded, at one image size.

    Images are drawn for `prompts` in turn. The unconditional input is the empty prompt, or the null
    class; without `null` there is none. `grid` is the number of rows and columns of image tokens.
    """

    def __init__(
        self,
        adapter: Adapter,
        prompts: Sequence[str],
        max_sequence_length: int,
        grid: tuple[int, int] | None = None,
        null: bool = True,
    ) -> None:
        self.adapter = adapter
        self.prompts = list(prompts)
        self.max_sequence_length = max_sequence_length
        self.grid = grid or calibration_grid(adapter)
        self.blocks = len(adapter.blocks())
        self.conditions = encode(adapter, self.prompts, max_sequence_length)
        self._null: Inputs = {}
        if null and (classes := adapter.classes()):
            self._null = {"class": torch.tensor([classes.null])}
        elif null:
            self._null = encode(adapter, [""], max_sequence_length)

    @property
    def has_null(self) -> bool:
        """Whether it has an unconditional input, and so a D_0."""
        return bool(self._null)

    def shorten(self, text_length: int) -> None:
        """Keep only the first `text_length` tokens of each prompt."""
        for inputs in filter(None, (self.conditions, self._null)):
            inputs["text"] = inputs["text"][:, :text_length]

    @property
    def tokens(self) -> int:
        """The number of image tokens."""
        return self.grid[0] * self.grid[1]

    def inputs(self, prompts: Sequence[int]) -> tuple[Inputs, Inputs]:
        """Return conditional and unconditional inputs, one row for each index into `prompts`.

        The latter are empty if the model has none.
        """
        rows = torch.as_tensor(list(prompts))
        fixed = fixed_inputs(self.adapter, len(rows), self.grid)
        conditional = {role: value[rows] for role, value in self.conditions.items()} | fixed
        null = {
            role: value.expand(len(rows), *value.shape[1:]) for role, value in self._null.items()
        }
        return conditional, null | fixed if null else {}

    def noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """Draw [N, ...] latents, each from its own generator, as `intaglio generate --seeds`."""
        draws = [
            draw_noise(self.adapter, self.grid, 1, torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        return torch.cat(draws)

    def sample(
        self,
        predict: Predict,
        seeds: Sequence[int],
        steps: int,
        watch: Watch | None = None,
    ) -> torch.Tensor:
        """Return the final latents [N, ...] of `seeds`; a seed draws prompt `seed % len(prompts)`.

        `watch` is called with each step and its prediction.
        """
        prompts = [seed % len(self.prompts) for seed in seeds]
        return self.denoise(predict, self.noise(seeds), prompts, steps, watch)

    @torch.no_grad()
    def denoise(
        self,
        predict: Predict,
        noise: torch.Tensor,
        prompts: Sequence[int],
        steps: int,
        watch: Watch | None = None,
    ) -> torch.Tensor:
        """Return the final latents of `noise` [N, ...], whose rows draw `prompts` by index."""
        conditional, null = self.inputs(prompts)
        scheduler = self.adapter.scheduler(steps, self.tokens)
        latents = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for index, timestep in enumerate(scheduler.timesteps):
            x = latents
            if hasattr(scheduler, "scale_model_input"):
                x = scheduler.scale_model_input(latents, timestep)
            # A scheduler of order 2 evaluates the model twice in each step.
            step = Step(
                x, timestep.float(), index // scheduler.order, steps, _sigma(scheduler, index)
            )
            prediction = predict(step, conditional, null)
            if watch:
                watch(step, prediction)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return latents

    def clean(self, step: Step, prediction: torch.Tensor) -> torch.Tensor:
        """Return the clean latents that a step's prediction implies."""
        clean = step.latents - step.sigma * prediction
        if self.adapter.prediction_type == "velocity":
            return clean
        return clean / float((1 - step.sigma**2) ** 0.5)

    @torch.no_grad()
    def images(self, latents: torch.Tensor) -> NDArray[np.float32]:
        """Decode to pictures [N, H, W, 3] with values from 0 to 1. They are not clipped, because
        clipping is measured."""
        layout = self.adapter.latent()
        if layout.packed:
            latents = unpack(latents, self.grid, self.adapter.patch_size)
        scaled = latents / layout.scaling_factor + layout.shift_factor
        pixels = self.adapter.decode(scaled)
        images: NDArray[np.float32] = (pixels.float().permute(0, 2, 3, 1) / 2 + 0.5).numpy()
        return images


def _sigma(scheduler: Any, evaluation: int) -> float:
    """Return the amount of noise in x at an evaluation."""
    if hasattr(scheduler, "alphas_cumprod"):  # variance preserving
        kept = scheduler.alphas_cumprod[int(scheduler.timesteps[evaluation])]
        return float((1 - kept) ** 0.5)
    return float(scheduler.sigmas[evaluation])
