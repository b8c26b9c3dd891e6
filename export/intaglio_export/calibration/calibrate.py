"""Observes a transformer's image stream while it samples, to find its massive channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter, Inputs
from intaglio_export.adapters.observing import observing
from intaglio_export.adapters.packing import pack, positions
from intaglio_export.calibration.massive import ChannelStatistics, Sums
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.errors import ExportError
from intaglio_export.precision import LowPrecisionMatmuls
from intaglio_export.support.quiet import quiet

STEPS = 5
# Tokens along a side beyond which statistics gain nothing but time.
MAX_SIDE_TOKENS = 24
# Images of large models are smaller, down to `MIN_SIDE_TOKENS`, so that their tokens times the
# model's parameters stay below this: a quarter of a billion parameters still get the full side.
MAX_TOKEN_PARAMETERS = 1.44e11
MIN_SIDE_TOKENS = 8


@torch.no_grad()
def calibrate(
    adapter: Adapter,
    max_sequence_length: int,
    progress: Callable[[float], None] = lambda share: None,
    seed: int = 0,
) -> ChannelStatistics:
    """Statistics of every block along short sampling runs of the real model.

    Each prompt starts from its own noise and takes `STEPS` steps of the pipeline's own scheduler,
    so timesteps from pure noise to nearly none are seen. `progress` is told the share done.

    The cost is bounded by the size of the images, never by their number: up to 24 x 24 tokens, and
    fewer from a quarter of a billion parameters on, down to 8 x 8 at 2 billion; sizes that a model
    fixes stay. SD3-medium takes about three minutes on two cores.

    Raises:
        ExportError: an activation is NaN or infinite.
    """
    grid = calibration_grid(adapter)
    constants = encode(adapter, PROMPTS, max_sequence_length) | fixed_inputs(
        adapter, len(PROMPTS), grid
    )
    latent = draw_noise(adapter, grid, len(PROMPTS), torch.Generator().manual_seed(seed))
    scheduler = adapter.scheduler(STEPS, grid[0] * grid[1])
    blocks = len(adapter.blocks())
    sums = Sums(blocks, adapter.channels)
    last = -1  # block that was seen last

    def tell(point: str, block: int, hidden_states: torch.Tensor) -> None:
        nonlocal last
        last = block
        sums.add(block, hidden_states.abs().float().numpy())

    def place() -> str:
        return f"block {last + 1}" if last + 1 < blocks else "what follows the blocks"

    with observing(adapter, tell, ["after"]):
        for step, timestep in enumerate(scheduler.timesteps):
            inputs = constants | {
                "latent": latent,
                "timestep": timestep.float().expand(len(PROMPTS)),
            }
            last = -1
            prediction = adapter.run(inputs, place)
            latent = scheduler.step(prediction, timestep, latent, return_dict=False)[0]
            progress((step + 1) / len(scheduler.timesteps))
    statistics = sums.result()
    finite = torch.from_numpy(statistics.ratio).isfinite().all(dim=1)
    if not finite.all():
        block = int((~finite).nonzero()[0])
        raise ExportError(
            f"The transformer's hidden state after block {block} is not finite on a test prompt;"
            " the weights are damaged or need a wider type than they were made in."
        )
    return statistics


def encode(adapter: Adapter, prompts: Sequence[str], max_sequence_length: int) -> Inputs:
    """The transformer's inputs that depend on `prompts` alone, by role."""
    # Prompts longer than the tokenizer's limit are cut, which does not matter here.
    with quiet(), LowPrecisionMatmuls(adapter.dtype, lambda: "a text encoder"):
        inputs = adapter.encode_prompts(list(prompts), max_sequence_length)
    return _taken(adapter, inputs)


def fixed_inputs(adapter: Adapter, rows: int, grid: tuple[int, int]) -> Inputs:
    """The inputs that depend on the size only, `grid` rows and columns of tokens, by role."""
    guidance = torch.full((rows,), adapter.defaults().distilled_guidance or 1.0)
    return _taken(adapter, {"position": positions(*grid), "guidance": guidance})


def _taken(adapter: Adapter, inputs: Inputs) -> Inputs:
    roles = {spec.role for spec in adapter.inputs()}
    return {role: value for role, value in inputs.items() if role in roles}


def draw_noise(
    adapter: Adapter, grid: tuple[int, int], rows: int, generator: torch.Generator
) -> torch.Tensor:
    """Noise in the transformer's layout, drawn unpacked as diffusers does."""
    patch = adapter.patch_size
    shape = (rows, adapter.latent().channels, grid[0] * patch, grid[1] * patch)
    noise = torch.randn(shape, generator=generator)
    return pack(noise, patch) if adapter.latent().packed else noise


def calibration_grid(adapter: Adapter) -> tuple[int, int]:
    """Rows and columns of tokens of an image that `observe` draws."""
    layout, defaults = adapter.latent(), adapter.defaults()
    unit = layout.vae_scale_factor * adapter.patch_size
    limit = math.inf if layout.fixed_size else _side_tokens(adapter.transformer)
    return int(min(defaults.height // unit, limit)), int(min(defaults.width // unit, limit))


def _side_tokens(transformer: nn.Module) -> int:
    """Tokens along a side of a calibration image."""
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    side = math.isqrt(int(MAX_TOKEN_PARAMETERS / parameters))
    return max(MIN_SIDE_TOKENS, min(MAX_SIDE_TOKENS, side))
