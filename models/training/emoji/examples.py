"""The training examples: latents of composed pictures, and captions that are drawn afresh."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional
from tqdm import tqdm

from models.training import text, vae

from . import captions, compose
from .pictures import Pictures

MAX_LENGTH = 24  # tokens of a caption
VOCABULARY = 2000


@dataclass
class Examples:
    """The training split: pictures, how they are composed, their colours and sampling weights.

    All pictures of the same name in the same style share one weight, so that an emoji in six skin
    tones is not drawn six times as often as others.
    """

    pictures: Pictures
    variants: compose.Variants
    colours: list[tuple[str, ...]]
    weights: torch.Tensor

    @classmethod
    def of(cls, pictures: Pictures) -> Examples:
        """Prepare `pictures`."""
        count = Counter((one.style, one.name) for one in pictures.emoji)
        weights = [1.0 / count[one.style, one.name] for one in pictures.emoji]
        colours = [captions.colours(rgba) for rgba in pictures.rgba]
        return cls(pictures, compose.plan(pictures), colours, torch.tensor(weights))

    def choose(self, n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw n pictures and their variants, half of which are white; return indices [n], [n]."""
        rows = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        white = torch.rand(n, generator=generator) < 0.5
        first = torch.randint(2, (n,), generator=generator)
        other = torch.randint(2, compose.VARIANTS, (n,), generator=generator)
        return rows.numpy(), torch.where(white, first, other).numpy()

    def captions(
        self, rows: np.ndarray, which: np.ndarray, generator: torch.Generator, dropout: float
    ) -> list[str]:
        """Draw a caption for each variant `which` [n] of picture `rows` [n]."""
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        drawn = []
        for i, v in zip(rows, which, strict=True):
            background = int(self.variants.background[i, v])
            caption = captions.draw(self.pictures.emoji[i], self.colours[i], background, rng)
            drawn.append("" if rng.random() < dropout else caption)
        return drawn

    def compose(self, rows: np.ndarray, which: np.ndarray) -> torch.Tensor:
        """Return variant `which` [n] of picture `rows` [n] as [n, 3, 64, 64] in [-1, 1]."""
        return torch.from_numpy(compose.compose(self.pictures, self.variants, rows, which))

    def pixels(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw pictures [n, 3, 64, 64] in [-1, 1]."""
        return self.compose(*self.choose(n, generator))

    def pairs(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
        """Draw pictures of half the side, [n, 3, 32, 32], with captions for `text.train_encoders`.

        The image encoder then takes a quarter of the time.
        """
        rows, which = self.choose(n, generator)
        pixels = self.compose(rows, which)
        return functional.avg_pool2d(pixels, 2), self.captions(rows, which, generator, 0.02)

    def sample_captions(self, n: int) -> list[str]:
        """Draw n captions, and add every name, to build the vocabulary from."""
        generator = torch.Generator().manual_seed(4)
        drawn = self.captions(*self.choose(n, generator), generator, 0.0)
        return drawn + [one.name for one in self.pictures.emoji]


@torch.no_grad()
def encode_all(examples: Examples, model: AutoencoderKL, path: Path, device: torch.device) -> None:
    """Write the latents of all variants to `path`, [n, VARIANTS, 8, 16, 16] in float16."""
    model.to(device, memory_format=torch.channels_last)
    n = len(examples.pictures.emoji)
    temporary = path.with_suffix(".tmp")
    shape = (n, compose.VARIANTS, model.config.latent_channels, 16, 16)
    file = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
    for start in tqdm(range(0, n, 64), "latents", mininterval=10.0):
        rows = np.arange(start, min(start + 64, n))
        for variant in range(compose.VARIANTS):
            which = np.full(len(rows), variant)
            pixels = examples.compose(rows, which)
            latents = vae.encode_latents(model, pixels.to(device))
            file[rows, variant] = latents.cpu().numpy()
    file.flush()
    temporary.rename(path)


class Batches:
    """Latents and prompt embeddings in batches. The text encoders run in the loop.

    They take 3 % of a step's time, and the embeddings of all captions would not fit on a disk.
    """

    def __init__(
        self, examples: Examples, latents: Path, encoders: Path, device: torch.device
    ) -> None:
        self.examples, self.device = examples, device
        self.latents = np.load(latents, mmap_mode="r")
        self.tokenizers, loaded = text.load_encoders(encoders)
        self.encoders = [encoder.to(device).requires_grad_(False) for encoder in loaded]

    def encode(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return words [n, MAX_LENGTH + 1, JOINT_DIM] and pooled [n, POOLED_DIM] of `prompts`.

        One zero row stands for all of them (flow.RepeatedRowAttention).
        """
        words, pooled = text.encode(self.tokenizers, self.encoders, prompts)
        return words[:, : self.tokenizers[0].model_max_length + 1], pooled

    def draw(
        self, n: int, dropout: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw latents [n, 8, 16, 16] with their words and pooled embeddings."""
        rows, which = self.examples.choose(n, generator)
        latents = torch.from_numpy(self.latents[rows, which].astype(np.float32)).to(self.device)
        drawn = self.examples.captions(rows, which, generator, dropout)
        return latents, *self.encode(drawn)
