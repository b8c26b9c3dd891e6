"""Measure a transformer's hidden states in short sampling runs, to find massive channels."""

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
from intaglio_export.support.guard import running
from intaglio_export.support.quiet import quiet

STEPS = 5
# More tokens along a side do not change the statistics.
MAX_SIDE_TOKENS = 24
# Images of large models are smaller, down to `MIN_SIDE_TOKENS`, so that the product of tokens and
# parameters stays below this. Models up to a quarter of a billion parameters get the full side.
MAX_TOKEN_PARAMETERS = 1.44e11
MIN_SIDE_TOKENS = 8


@torch.no_grad()
def calibrate(
    adapter: Adapter,
    max_sequence_length: int,
    progress: Callable[[float], None] = lambda share: None,
    seed: int = 0,
    record: Callable[[Inputs], None] = lambda inputs: None,
) -> ChannelStatistics:
    """Return statistics of every block from short sampling runs of the model.

    Each prompt starts from its own noise and takes `STEPS` steps of the pipeline's own scheduler,
    so the timesteps range from pure noise to almost none. `progress` gets the share that is done,
    and `record` the transformer's inputs at each step, with a row for each of `PROMPTS`.

    Large models get smaller images to limit the time: 24 x 24 tokens up to a quarter of a billion
    parameters, down to 8 x 8 at 2 billion. A model with a fixed image size keeps it. SD3-medium
    takes about three minutes on two cores.

    Raises:
        ExportError: an activation is NaN or infinite.
    """
    grid = calibration_grid(adapter)
    constants = encode(adapter, PROMPTS, max_sequence_length) | fixed_inputs(
        adapter, len(PROMPTS), grid
    )
    latent = draw_noise(adapter, grid, len(PROMPTS), torch.Generator().manual_seed(seed))
    with running("The scheduler"):
        scheduler = adapter.scheduler(STEPS, grid[0] * grid[1])
    blocks = len(adapter.blocks())
    sums = Sums(blocks, adapter.channels)
    last = -1  # the last block that was observed

    def add(point: str, block: int, hidden_states: torch.Tensor) -> None:
        nonlocal last
        last = block
        sums.add(block, hidden_states.abs().float().numpy())

    def current_part() -> str:
        return f"block {last + 1}" if last + 1 < blocks else "what follows the blocks"

    with running("The transformer"), observing(adapter, add, ["after"]):
        for step, timestep in enumerate(scheduler.timesteps):
            inputs = constants | {
                "latent": latent,
                "timestep": timestep.float().expand(len(PROMPTS)),
            }
            record(inputs)
            last = -1
            prediction = adapter.run(inputs, current_part)
            latent = scheduler.step(prediction, timestep, latent, return_dict=False)[0]
            progress((step + 1) / len(scheduler.timesteps))
    statistics = sums.result()
    finite = torch.from_numpy(statistics.ratio).isfinite().all(dim=1)
    if not finite.all():
        block = int((~finite).nonzero()[0])
        raise ExportError(
            f"The transformer's hidden state after block {block} is not finite on a test prompt;"
            " the weights are damaged or need a larger type; download the model again or give"
            " --dtype fp32."
        )
    return statistics


def encode(adapter: Adapter, prompts: Sequence[str], max_sequence_length: int) -> Inputs:
    """Return the transformer's inputs that depend only on `prompts`, by role.

    Without text encoders they are random.
    """
    if (layout := adapter.prompt(max_sequence_length)) and not adapter.has_encoders:
        length = sum(segment.length for segment in layout.text)
        return adapter.random_text(len(prompts), length)
    # Prompts longer than the tokenizer's limit are cut, which does not matter here.
    with (
        quiet(),
        running("A text encoder"),
        LowPrecisionMatmuls(adapter.dtype, lambda: "a text encoder"),
    ):
        inputs = adapter.encode_prompts(list(prompts), max_sequence_length)
    return _used_inputs(adapter, inputs)


def fixed_inputs(adapter: Adapter, rows: int, grid: tuple[int, int]) -> Inputs:
    """Return the inputs that depend only on the size, `grid` in rows and columns of tokens."""
    guidance = torch.full((rows,), adapter.defaults().distilled_guidance or 1.0)
    return _used_inputs(adapter, {"position": positions(*grid), "guidance": guidance})


def _used_inputs(adapter: Adapter, inputs: Inputs) -> Inputs:
    roles = {spec.role for spec in adapter.inputs()}
    return {role: value for role, value in inputs.items() if role in roles}


def draw_noise(
    adapter: Adapter, grid: tuple[int, int], rows: int, generator: torch.Generator
) -> torch.Tensor:
    """Return noise in the transformer's layout, drawn in the unpacked layout as diffusers does."""
    patch = adapter.patch_size
    shape = (rows, adapter.latent().channels, grid[0] * patch, grid[1] * patch)
    noise = torch.randn(shape, generator=generator)
    return pack(noise, patch) if adapter.latent().packed else noise


def calibration_grid(adapter: Adapter) -> tuple[int, int]:
    """Return the rows and columns of tokens of a calibration image."""
    layout, defaults = adapter.latent(), adapter.defaults()
    unit = adapter.size_multiple
    limit = math.inf if layout.fixed_size else _side_tokens(adapter.transformer)
    return int(min(defaults.height // unit, limit)), int(min(defaults.width // unit, limit))


def _side_tokens(transformer: nn.Module) -> int:
    """Return the number of tokens along a side of a calibration image."""
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    side = math.isqrt(int(MAX_TOKEN_PARAMETERS / parameters))
    return max(MIN_SIDE_TOKENS, min(MAX_SIDE_TOKENS, side))
