"""Fashion-MNIST as images in [-1, 1], and captions made from class and measured attributes."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")
NAMES = (
    "t-shirt",
    "pair of trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
TONES = ("", "dark", "light")
TEXTURES = ("", "patterned")
WIDTHS = ("", "wide", "narrow")
TEMPLATES = ("{a} {x}", "{x}", "a photo of {a} {x}")
TEMPLATE_WEIGHTS = (0.8, 0.1, 0.1)


class DataError(Exception):
    """The images were not found; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """`images` [n, 28, 28] uint8 and `labels` [n] int64."""

    images: np.ndarray
    labels: np.ndarray


def load_split(folder: Path, split: str, limit: int | None = None) -> Split:
    """Read the split `train` or `t10k` of the IDX files in `folder`, at most `limit` images."""
    arrays = []
    for part, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = folder / f"{split}-{part}-ubyte.gz"
        if not path.is_file():
            raise DataError(
                f"{path} does not exist: install the Debian package dataset-fashion-mnist, "
                "or name the folder of the four .gz files with --data"
            )
        arrays.append(np.frombuffer(gzip.decompress(path.read_bytes())[header:], np.uint8))
    images = arrays[0].reshape(-1, 28, 28)[:limit]
    return Split(images, arrays[1][:limit].astype(np.int64))


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Convert images [n, 28, 28] uint8 to [n, 1, 32, 32] in [-1, 1], padded with black pixels."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(padded).float().div(127.5).sub(1.0).unsqueeze(1)


def _measures(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tone (mean garment pixel), texture (mean step between pixels) and width, each [n]."""
    x = images.astype(np.float32) / 255.0
    inside = x > 0.05
    tone = (x * inside).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1)
    pairs = inside[:, :, 1:] & inside[:, :, :-1]
    steps = np.abs(np.diff(x, axis=2)) * pairs
    texture = steps.sum((1, 2)) / np.maximum(pairs.sum((1, 2)), 1)
    width = inside.any(1).sum(1).astype(np.float32) / np.maximum(inside.any(2).sum(1), 1)
    return tone, texture, width


def attributes(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return [n, 3] int64 indices into TONES, TEXTURES and WIDTHS.

    A quarter of all images is dark and a quarter light. Within a class, the quarter with the most
    texture is patterned, the narrowest quarter is narrow and the widest is wide.
    """
    tone, texture, width = _measures(images)
    found = np.zeros((len(images), 3), np.int64)
    low, high = np.quantile(tone, (0.25, 0.75))
    found[:, 0] = np.where(tone < low, 1, np.where(tone > high, 2, 0))
    for label in np.unique(labels):
        rows = labels == label
        found[rows, 1] = texture[rows] > np.quantile(texture[rows], 0.75)
        low, high = np.quantile(width[rows], (0.25, 0.75))
        found[rows, 2] = np.where(width[rows] > high, 1, np.where(width[rows] < low, 2, 0))
    return found


def caption(label: int, tone: int = 0, texture: int = 0, width: int = 0, template: int = 0) -> str:
    """Return the caption of a class with attributes, such as "a dark ankle boot"."""
    words = (TONES[tone], TEXTURES[texture], WIDTHS[width], NAMES[label])
    phrase = " ".join(word for word in words if word)
    article = "an" if phrase[0] in "aeiou" else "a"
    return TEMPLATES[template].format(a=article, x=phrase)


def all_captions() -> list[str]:
    """Return every caption in the order of `caption_index`, with the empty one last."""
    shape = (len(TEMPLATES), len(NAMES), len(TONES), len(TEXTURES), len(WIDTHS))
    rows = itertools.product(*(range(n) for n in shape))
    return [caption(c, tone, texture, w, t) for t, c, tone, texture, w in rows] + [""]


def caption_index(
    labels: torch.Tensor, attrs: torch.Tensor, dropout: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw a caption for each image and return indices [n] into `all_captions()`.

    Each of the measured attributes `attrs` [n, 3] is in the caption with probability one half, so
    that short prompts are trained too. With probability `dropout` the caption is empty.
    """
    n = len(labels)
    named = attrs * (torch.rand(n, 3, generator=generator) < 0.5)
    weights = torch.tensor(TEMPLATE_WEIGHTS)
    template = torch.multinomial(weights, n, replacement=True, generator=generator)
    index = template
    for column, size in (
        (labels, len(NAMES)),
        (named[:, 0], len(TONES)),
        (named[:, 1], len(TEXTURES)),
        (named[:, 2], len(WIDTHS)),
    ):
        index = index * size + column
    empty = len(TEMPLATES) * len(NAMES) * len(TONES) * len(TEXTURES) * len(WIDTHS)
    dropped = torch.rand(n, generator=generator) < dropout
    return torch.where(dropped, torch.full_like(index, empty), index)


def pairs(
    pixels: torch.Tensor, labels: torch.Tensor, attrs: torch.Tensor
) -> Callable[[int, torch.Generator], tuple[torch.Tensor, list[str]]]:
    """Return a function that draws n of `pixels` with captions, for `text.train_encoders`."""
    captions = all_captions()

    def draw(n: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
        rows = torch.randint(len(pixels), (n,), generator=generator)
        chosen = caption_index(labels[rows], attrs[rows], 0.02, generator)
        return pixels[rows], [captions[i] for i in chosen]

    return draw
