"""How much of a channel's size the timestep explains and how much the prompt, by swapping them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model, Step
from intaglio_export.adapters.observing import observing

# How many timesteps, prompts and images are combined with each other.
LEVELS = 4
FACTORS = ("time embedding", "prompt vector", "image")


@torch.no_grad()
def explained(
    model: Model, block: int, channels: Sequence[int], steps: int, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Return each factor's share of the variance of the channels' mean |z| after `block`.

    The model gets all combinations of `LEVELS` timesteps, prompts and images, where an image is
    one prompt's latents at one step. The prompt is swapped in its vector: pooled text, else the
    class, else the text itself. The shares [channels] are the main effects of a three-way analysis
    of variance, and the remaining interactions.
    """
    picked = np.unique(np.linspace(0, steps - 1, LEVELS).round().astype(int))
    states: list[torch.Tensor] = []
    times: list[torch.Tensor] = []

    def watch(step: Step, prediction: torch.Tensor) -> None:
        states.append(step.latents)
        times.append(step.timestep)

    model.sample(Method().predictor(model), range(seed, seed + LEVELS), steps, watch=watch)
    # Image i is the one of prompt i at the i-th picked step, so images differ in both.
    images = torch.stack([states[s][i % LEVELS] for i, s in enumerate(picked)])
    swapped = next(role for role in ("pooled", "class", "text") if role in model.conditions)
    # A text is swapped together with its mask.
    roles = [swapped, *({"text_mask"} & set(model.conditions) if swapped == "text" else ())]
    prompts = [i % len(model.prompts) for i in range(LEVELS)]
    conditional, _ = model.inputs([i % len(model.prompts) for i in range(len(images))])
    vectors = model.inputs(prompts)[0]
    found = np.zeros((len(picked), LEVELS, len(images), len(channels)))
    for t, at in enumerate(picked):
        for p in range(LEVELS):
            given = conditional | {
                "latent": images,
                "timestep": times[at].expand(len(images)),
            }
            for role in roles:
                vector = vectors[role][p : p + 1]
                given[role] = vector.expand(len(images), *vector.shape[1:])
            found[t, p] = _sizes(model, block, channels, given)
    return _main_effects(found, f"prompt vector ({swapped})")


def _sizes(
    model: Model, block: int, channels: Sequence[int], inputs: dict[str, torch.Tensor]
) -> NDArray[np.float64]:
    """Return the mean |z| [rows, channels] after `block`."""
    sizes: list[NDArray[np.float64]] = []

    def record(point: str, at: int, tensor: torch.Tensor) -> None:
        if at == block:
            sizes.append(tensor[..., list(channels)].abs().mean(1).double().numpy())

    with observing(model.adapter, record, ["after"]):
        model.adapter.run(inputs)
    return sizes[0]


def _main_effects(found: NDArray[np.float64], prompt: str) -> dict[str, NDArray[np.float64]]:
    """Return each factor's share [channels] of the variance of `found`.

    `found` is [times, prompts, images, channels].
    """
    total = found.var((0, 1, 2)).clip(1e-12)
    shares = {
        name: found.mean(tuple({0, 1, 2} - {axis})).var(0) / total
        for axis, name in enumerate((FACTORS[0], prompt, FACTORS[2]))
    }
    return shares | {"interactions": 1 - np.sum(list(shares.values()), axis=0)}
