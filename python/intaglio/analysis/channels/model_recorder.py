"""Records hidden states of a diffusers model while it samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio.analysis.channels.attention import (
    Attention,
    attending,
    key_kinds,
    written_tokens,
)
from intaglio.analysis.channels.recorder import ATTENTION, Recorder, Statistics
from intaglio.torch_reference.fingerprint import identity
from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model, Predict, Step
from intaglio_export.adapters.base import Inputs
from intaglio_export.adapters.observing import observing

# What `observing` calls points, and attention.
POINTS = ("after", "text", "modulated", "gate", ATTENTION)
# Rows that run through the model at once.
BATCH = 8


def record_model(
    model: Model,
    seeds: Sequence[int],
    steps: int,
    path: Path,
    progress: Callable[[float], None] = lambda share: None,
    points: Sequence[str] = POINTS,
) -> Statistics:
    """Record the conditional branch along unguided runs, one image for each of `seeds`.

    Seed i draws prompt i modulo their number. The sums are kept in `path`, so a stopped recording
    continues.
    """
    recorder = Recorder(model.blocks, steps)
    recorder.about = {
        "points": list(points),
        "model": identity(model),
        "prompts": model.prompts,
        "seeds": list(seeds),
        "steps": steps,
        "grid": list(model.grid),
    }
    recorder.resume(path)
    recorder.describe(path.with_suffix(".json"))
    conditional = Method().predictor(model)
    for batch, start in enumerate(range(0, len(seeds), BATCH)):
        if batch >= recorder.done:
            _record(model, recorder, conditional, seeds[start : start + BATCH], points)
            recorder.done = batch + 1
            recorder.save(path)
        progress(min(1.0, (start + BATCH) / len(seeds)))
    return recorder.result()


def _record(
    model: Model,
    recorder: Recorder,
    conditional: Predict,
    seeds: Sequence[int],
    points: Sequence[str],
) -> None:
    observed = [point for point in points if point != ATTENTION]
    written = written_tokens(model) if ATTENTION in points else None
    if written is not None:
        written = written[np.array(seeds) % len(model.prompts)]

    def predict(step: Step, given: Inputs, null: Inputs) -> torch.Tensor:
        recorder.sigmas[step.index] = step.sigma
        prompted = prompt_tokens(given)

        def record(point: str, block: int, tensor: torch.Tensor) -> None:
            tokens = prompted if point == "text" else None
            recorder.add(point, block, step.index, tensor.float().numpy(), tokens)

        def attend(block: int, call: Attention) -> None:
            mass = call.mass().numpy()
            kinds = key_kinds(model, written, mass.shape[1])
            recorder.add_attention(block, step.index, mass, kinds)

        with observing(model.adapter, record, observed), ExitStack() as stack:
            if ATTENTION in points:
                stack.enter_context(attending(model, attend))
            return conditional(step, given, null)

    model.sample(predict, seeds, recorder.steps)


def prompt_tokens(inputs: Inputs) -> NDArray[np.bool_] | None:
    """Return which tokens [B, S] of the text count; None if the model takes no text.

    Masked tokens do not count, nor do the zeros that stand for an absent encoder.
    """
    if "text" not in inputs:
        return None
    tokens = (inputs["text"] != 0).any(2)
    if "text_mask" in inputs:
        tokens &= inputs["text_mask"] > 0
    found: NDArray[np.bool_] = tokens.numpy()
    return found


def maps(
    model: Model, block: int, channels: Sequence[int], seed: int, steps: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[float]]:
    """Map channels over the image along one unguided run.

    Returns:
        z [S, len(channels), rows, columns] after `block`, the clean image that each step implies
        [S, H, W, 3], and each step's sigma.
    """
    found: list[NDArray[np.float32]] = []
    clean: list[torch.Tensor] = []
    sigmas: list[float] = []
    conditional = Method().predictor(model)

    def predict(step: Step, given: Inputs, null: Inputs) -> torch.Tensor:
        def record(point: str, at: int, tensor: torch.Tensor) -> None:
            if at == block:
                columns = tensor[0][:, list(channels)].T.reshape(len(channels), *model.grid)
                found.append(columns.float().numpy())

        with observing(model.adapter, record, ["after"]):
            prediction = conditional(step, given, null)
        clean.append(model.clean(step, prediction))
        sigmas.append(step.sigma)
        return prediction

    model.sample(predict, [seed], steps)
    return np.stack(found), model.images(torch.cat(clean)), sigmas


def last_maps(
    model: Model, block: int, channels: Sequence[int], seeds: Sequence[int], steps: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Map channels after `block` at the last step of unguided runs.

    Returns:
        z [N, rows, columns, len(channels)] and the final pictures [N, H, W, 3].
    """
    found: dict[int, NDArray[np.float32]] = {}

    def record(point: str, at: int, tensor: torch.Tensor) -> None:
        if at == block:  # later steps replace earlier ones
            found[at] = tensor[..., list(channels)].float().numpy()

    with observing(model.adapter, record, ["after"]):
        latents = model.sample(Method().predictor(model), seeds, steps)
    return found[block].reshape(len(seeds), *model.grid, -1), model.images(latents)
