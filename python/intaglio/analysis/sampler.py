"""A diffusers model as the probe runs it: prompts encoded once, noise by seed, guided sampling.

The loop is diffusers' own scheduler around a function that gives the guided prediction;
`methods.py` has these. Everything is float32 but what the model's precision narrows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from intaglio_export.adapters import Adapter
from intaglio_export.adapters.base import Inputs
from intaglio_export.adapters.packing import unpack
from intaglio_export.calibration.calibrate import calibration_grid, draw_noise, encode, fixed_inputs


@dataclass(frozen=True)
class Step:
    """One evaluation of the model for N images: x [N, ...] at step `index` of `steps`.

    x - sigma * prediction is the clean image, up to a factor. Windows are compared with `share`.
    """

    latents: torch.Tensor
    timestep: torch.Tensor
    index: int
    steps: int
    sigma: float

    @property
    def share(self) -> float:
        return self.index / self.steps


# From a step, and the rows of conditional and unconditional inputs, to the guided prediction.
Predict = Callable[[Step, Inputs, Inputs], torch.Tensor]
Watch = Callable[[Step, torch.Tensor], None]


class Model:
    """An adapter with its prompts encoded, at one image size.

    `prompts` are what images are drawn for, in turn; the unconditional input is the empty prompt,
    or the null class. `grid` is the number of rows and columns of tokens.
    """

    def __init__(
        self,
        adapter: Adapter,
        prompts: Sequence[str],
        max_sequence_length: int,
        grid: tuple[int, int] | None = None,
    ) -> None:
        self.adapter = adapter
        self.prompts = list(prompts)
        self.max_sequence_length = max_sequence_length
        self.grid = grid or calibration_grid(adapter)
        self.blocks = len(adapter.blocks())
        self.conditions = encode(adapter, self.prompts, max_sequence_length)
        classes = adapter.classes()
        self._null = (
            {"class": torch.tensor([classes.null])}
            if classes
            else encode(adapter, [""], max_sequence_length)
        )

    def shorten(self, text_length: int) -> None:
        """Drop what follows the first `text_length` rows of each prompt's sequence."""
        for inputs in (self.conditions, self._null):
            inputs["text"] = inputs["text"][:, :text_length]

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return self.grid[0] * self.grid[1]

    def inputs(self, prompts: Sequence[int]) -> tuple[Inputs, Inputs]:
        """Conditional and unconditional inputs of one row for each index into `self.prompts`."""
        rows = torch.as_tensor(list(prompts))
        fixed = fixed_inputs(self.adapter, len(rows), self.grid)
        conditional = {role: value[rows] for role, value in self.conditions.items()} | fixed
        null = {
            role: value.expand(len(rows), *value.shape[1:]) for role, value in self._null.items()
        }
        return conditional, null | fixed

    def noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """[N, ...] latents, each of its own generator, as `intaglio generate --seeds` draws."""
        draws = [
            draw_noise(self.adapter, self.grid, 1, torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        return torch.cat(draws)

    @torch.no_grad()
    def sample(
        self,
        predict: Predict,
        seeds: Sequence[int],
        steps: int,
        watch: Watch | None = None,
    ) -> torch.Tensor:
        """Final latents [N, ...] of image `seed % len(prompts)` for each of `seeds`.

        `watch` is told each step's prediction.
        """
        conditional, null = self.inputs([seed % len(self.prompts) for seed in seeds])
        scheduler = self.adapter.scheduler(steps, self.tokens)
        latents = self.noise(seeds) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for index, timestep in enumerate(scheduler.timesteps):
            x = latents
            if hasattr(scheduler, "scale_model_input"):
                x = scheduler.scale_model_input(latents, timestep)
            # An order-2 scheduler evaluates the model twice a step.
            step = Step(
                x, timestep.float(), index // scheduler.order, steps, _sigma(scheduler, index)
            )
            prediction = predict(step, conditional, null)
            if watch:
                watch(step, prediction)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return latents

    def clean(self, step: Step, prediction: torch.Tensor) -> torch.Tensor:
        """The latents without noise that a step's prediction means."""
        clean = step.latents - step.sigma * prediction
        if self.adapter.prediction_type == "velocity":
            return clean
        return clean / float((1 - step.sigma**2) ** 0.5)

    @torch.no_grad()
    def images(self, latents: torch.Tensor) -> NDArray[np.float32]:
        """Decoded pictures [N, H, W, 3]; 0 to 1, not clipped, since clipping is measured."""
        layout = self.adapter.latent()
        if layout.packed:
            latents = unpack(latents, self.grid, self.adapter.patch_size)
        scaled = latents / layout.scaling_factor + layout.shift_factor
        pixels = self.adapter.decode(scaled)
        images: NDArray[np.float32] = (pixels.float().permute(0, 2, 3, 1) / 2 + 0.5).numpy()
        return images


def _sigma(scheduler: Any, evaluation: int) -> float:
    """How much of the noise is in x at an evaluation."""
    if hasattr(scheduler, "alphas_cumprod"):  # variance preserving
        kept = scheduler.alphas_cumprod[int(scheduler.timesteps[evaluation])]
        return float((1 - kept) ** 0.5)
    return float(scheduler.sigmas[evaluation])


@contextmanager
def changing(
    adapter: Adapter,
    block: int,
    hidden: Callable[[torch.Tensor], torch.Tensor] | None = None,
    text: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[None]:
    """Replace what block `block` gives on: the image stream by `hidden` of it, text by `text`."""

    def hook(module: object, args: object, output: object) -> object:
        stream, others = adapter.split(output)
        if text is not None and others and others[0] is not None:
            others = (text(others[0]), *others[1:])
        return adapter.join(hidden(stream) if hidden else stream, others)

    handle = adapter.blocks()[block].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def fingerprint(network: nn.Module) -> str:
    """Tells one set of weights from another by the beginning of each."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.flatten()[:1024].double().numpy().tobytes())
    return digest.hexdigest()


def identity(model: Model) -> str:
    """Tells a model from others that draw other pictures of the same seeds: by the weights of its
    networks, its scheduler, precision, and prompts."""
    adapter = model.adapter
    names = ("transformer", "vae", *adapter.text_encoders)
    networks = {name: getattr(adapter.pipeline, name) for name in names}
    scheduler = adapter.pipeline.scheduler
    what = [
        {name: network and fingerprint(network) for name, network in networks.items()},
        [str(adapter.dtype), str(adapter.latent()), model.prompts, model.max_sequence_length],
        [type(scheduler).__name__, dict(scheduler.config)],
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
