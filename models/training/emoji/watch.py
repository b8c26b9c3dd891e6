"""What is seen of a run while it trains: massive activations in a CSV file, and sample sheets."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image, ImageDraw

from intaglio_export.calibration.massive import Sums
from models.training import curve, text

from .examples import Batches
from .pictures import SIZE

SIGMAS = (0.95, 0.75, 0.5, 0.25, 0.05)
COLUMNS = ["step", "sigma", "block", "ratio", "channel", "tokens", "agreement", "max_abs"]
# Everyday prompts, and some whose pictures are held out or exist in no set.
PROMPTS = (
    "a red apple, glossy 3d",
    "a red apple, flat",
    "a red apple, cartoon",
    "a red apple, glossy 3d, navy background",
    "a fox, glossy 3d",
    "a turtle, flat, pink background",
    "a slice of pizza, cartoon",
    "a rocket, glossy 3d, black background",
    "a smiling face with sunglasses, glossy 3d",
    "a crying face, flat",
    "a sunflower, cartoon, pale blue background",
    "a cat face, glossy 3d",
    "a house with garden, flat",
    "a guitar, glossy 3d",
    "a waving hand, dark skin tone, cartoon",
    "a firefighter, flat",
    "a birthday cake, glossy 3d, lavender background",
    "a bicycle, flat",
    "a blue heart, glossy 3d",
    "a purple fruit, glossy 3d",
    "a green car, cartoon",
    "a pink elephant, flat",
    "red and white mammals, glossy 3d",
    "a bird",
)


@torch.no_grad()
def activations(
    model: SD3Transformer2DModel, batches: Batches, n: int = 24
) -> list[list[float | str]]:
    """Measure the channel with the largest mean |z| after each block, at five noise levels.

    A row has sigma, block, the ratio of the top channel to the median channel, its index, the share
    of image tokens on which |z| is at least 10 times the median channel's mean, the share of
    conditions in which the channel is massive, and the largest |z|. The pictures, captions and
    noise are the same ones at each step.
    """
    generator = torch.Generator().manual_seed(6)
    latents, words, pooled = batches.draw(n, 0.0, generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    seen: list[np.ndarray] = []

    def keep(module: torch.nn.Module, args: object, out: tuple[torch.Tensor, torch.Tensor]) -> None:
        seen.append(out[1].abs().float().cpu().numpy())

    hooks = [block.register_forward_hook(keep) for block in model.transformer_blocks]
    rows: list[list[float | str]] = []
    for sigma in SIGMAS:
        seen.clear()
        model(
            hidden_states=(1.0 - sigma) * latents + sigma * noise,
            encoder_hidden_states=words,
            pooled_projections=pooled,
            timestep=torch.full((n,), 1000.0 * sigma, device=latents.device),
            return_dict=False,
        )
        for index, size in enumerate(seen):
            sums = Sums(1, size.shape[-1])
            sums.add(0, size)
            found = sums.result()
            top = found.largest(0)[0]
            median = np.median(size.mean(1), axis=1)
            tokens = float((size[..., top] >= 10.0 * median[:, None]).mean())
            values = (found.ratio[0, top], top, tokens, found.agreement[0, top], found.max_abs[0])
            rows.append([sigma, index, *(f"{value:.4g}" for value in values)])
    for hook in hooks:
        hook.remove()
    return rows


def sheet(pipeline: StableDiffusion3Pipeline, path: Path, guidance_scale: float = 4.0) -> None:
    """Draw PROMPTS with 20 steps from fixed seeds, twice their size and labelled, into a PNG."""
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        list(PROMPTS),
        height=SIZE,
        width=SIZE,
        num_inference_steps=20,
        guidance_scale=guidance_scale,
        max_sequence_length=text.MAX_SEQUENCE_LENGTH,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))],
    ).images
    labelled(images, list(PROMPTS), path)


def labelled(images: list[Image.Image], labels: list[str], path: Path, columns: int = 8) -> None:
    """Write images of 64x64 pixels at twice their size with labels below, in rows, to a PNG."""
    side, line = 2 * SIZE, 38
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (side + 4), rows * (side + line)), "white")
    pen = ImageDraw.Draw(page)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = i % columns * (side + 4), i // columns * (side + line)
        page.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
        text_below = "\n".join(textwrap.wrap(label, 23)[:3])
        pen.text((x, y + side), text_below, "black", font_size=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Convert pixels [n, 3, H, W] in [-1, 1] to images."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(one) for one in values.cpu().numpy()]


def log_activations(path: Path, step: int, rows: list[list[float | str]]) -> None:
    """Append the rows of `activations` at a step to the CSV file."""
    curve.append(path, [[step, *row] for row in rows])
