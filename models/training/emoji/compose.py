"""Pictures on plain backgrounds, in several variants each: other backgrounds, flips, small shifts.

A shift stays inside the transparent margin and a flip keeps every pixel, so no detail is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .pictures import Emoji, Pictures

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (16, 16, 16),
    "gray": (150, 150, 150),
    "red": (200, 40, 40),
    "orange": (245, 150, 50),
    "yellow": (250, 225, 100),
    "green": (60, 150, 70),
    "mint": (190, 240, 210),
    "pale blue": (190, 225, 250),
    "navy": (25, 40, 95),
    "pink": (250, 195, 215),
    "lavender": (205, 190, 240),
    "beige": (235, 220, 190),
}
WHITE = 0
# The colours that `histogram` counts, and which of them resemble which background.
COLOURS = np.stack(np.unravel_index(np.arange(4096), (16, 16, 16)), 1) * 16 + 8
NEAR = np.stack([np.linalg.norm(COLOURS - np.array(c), axis=1) < 70 for c in BACKGROUNDS.values()])
VARIANTS = 6  # the first two are white
MAX_SHIFT = 3  # pixels
FLIPPED_GROUPS = ("animals and nature", "food and drink", "smileys and emotion", "activities")
FLIPPED_KINDS = ("ground transportation", "water transportation", "air transportation")


@dataclass(frozen=True)
class Variants:
    """How each of n pictures is composed in each of its variants.

    `background` [n, VARIANTS] int64 are indices into BACKGROUNDS, `flip` [n, VARIANTS] bool, and
    `shift` [n, VARIANTS, 2] int64 pixels downwards and to the right.
    """

    background: np.ndarray
    flip: np.ndarray
    shift: np.ndarray


def may_flip(emoji: Emoji) -> bool:
    """Return whether the mirrored picture still shows what the name says."""
    if {"left", "right", "leftwards", "rightwards"} & set(emoji.name.split()):
        return False
    return emoji.group in FLIPPED_GROUPS or emoji.kind in FLIPPED_KINDS


def margins(rgba: np.ndarray) -> np.ndarray:
    """Return the empty rows above and below and columns left and right of `rgba`, as [2, 2]."""
    seen = rgba[..., 3] > 0
    found = []
    for axis in (1, 0):
        line = np.flatnonzero(seen.any(axis))
        found.append((line[0], len(seen) - 1 - line[-1]) if len(line) else (0, 0))
    return np.array(found)


def histogram(rgba: np.ndarray) -> np.ndarray:
    """Return the share of each colour of 4 bits a channel in the opaque pixels, as [4096]."""
    pixels = rgba[rgba[..., 3] > 127][:, :3].astype(np.int64) >> 4
    counts = np.bincount(pixels @ (256, 16, 1), minlength=4096)
    return counts / max(len(pixels), 1)


def contrasting(rgba: np.ndarray) -> list[int]:
    """Return the backgrounds other than white that few pixels of the picture resemble."""
    near = NEAR @ histogram(rgba)
    return [index for index in range(len(near)) if index != WHITE and near[index] < 0.3]


def plan(pictures: Pictures) -> Variants:
    """Draw the variants of all pictures; picture i has the same ones whatever the others are."""
    n = len(pictures.emoji)
    background = np.zeros((n, VARIANTS), np.int64)
    flip, shift = np.zeros((n, VARIANTS), bool), np.zeros((n, VARIANTS, 2), np.int64)
    for i, emoji in enumerate(pictures.emoji):
        rng = np.random.default_rng([7, i])
        rgba = pictures.rgba[i]
        background[i, 2:] = rng.choice(contrasting(rgba), VARIANTS - 2, replace=False)
        if may_flip(emoji):
            flip[i, 1:] = rng.random(VARIANTS - 1) < 0.5
        # The smaller margin of both sides is free in either direction, also after a flip.
        free = np.minimum(margins(rgba).min(1), MAX_SHIFT)
        shift[i, 1:] = rng.integers(-free, free + 1, (VARIANTS - 1, 2))
    return Variants(background, flip, shift)


def compose(
    pictures: Pictures, variants: Variants, rows: np.ndarray, which: np.ndarray
) -> np.ndarray:
    """Return variant `which` [n] of picture `rows` [n] as [n, 3, 64, 64] float32 in [-1, 1]."""
    palette = np.array(list(BACKGROUNDS.values()), np.float32)
    out = np.empty((len(rows), 3, *pictures.rgba.shape[1:3]), np.float32)
    for k, (i, v) in enumerate(zip(rows, which, strict=True)):
        rgba = pictures.rgba[i]
        rgba = rgba[:, ::-1] if variants.flip[i, v] else rgba
        rgba = np.roll(rgba, variants.shift[i, v], axis=(0, 1)).astype(np.float32)
        alpha = rgba[..., 3:] / 255.0
        mixed = rgba[..., :3] * alpha + palette[variants.background[i, v]] * (1.0 - alpha)
        out[k] = mixed.transpose(2, 0, 1)
    return out / 127.5 - 1.0
