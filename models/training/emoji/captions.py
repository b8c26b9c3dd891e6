"""Captions of the pictures: name, kind, measured colours, style and background.

A caption without a background means a white one. Styles and colours are named in most captions, not
in all, so that short prompts are trained too.
"""

from __future__ import annotations

import colorsys
import random

import numpy as np

from .compose import BACKGROUNDS, COLOURS, WHITE, histogram
from .pictures import Emoji

# Upper ends of hue in degrees, for colours that are neither grey nor dark nor pale.
HUES = ((14, "red"), (40, "orange"), (68, "yellow"), (165, "green"), (255, "blue"))
HUES += ((290, "purple"), (345, "pink"), (360, "red"))
SECOND_COLOUR = 0.25  # the share of the pixels that a second colour needs to be named
HEADS = ("name", "coloured name", "name and kind", "colour and kind")
HEAD_WEIGHTS = (0.6, 0.15, 0.12, 0.13)


def colour_name(red: float, green: float, blue: float) -> str:
    """Return the name of a colour whose channels are in [0, 1]."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    hue *= 360
    if value < 0.2:
        return "black"
    if saturation < 0.14:
        return "white" if value > 0.85 else "gray"
    if 10 <= hue < 45 and value < 0.7:
        return "brown"
    if 14 <= hue < 68 and saturation < 0.35:
        return "beige"
    if 290 < hue < 330 and value < 0.6:
        return "purple"
    if (hue < 14 or hue >= 330) and saturation < 0.55 and value > 0.7:
        return "pink"
    return next(name for end, name in HUES if hue <= end)


NAMED = [colour_name(*(colour / 255.0)) for colour in COLOURS]


def colours(rgba: np.ndarray) -> tuple[str, ...]:
    """Return the one or two commonest colours of the opaque pixels of `rgba` [64, 64, 4]."""
    found = histogram(rgba)
    shares: dict[str, float] = {}
    for colour in np.flatnonzero(found):
        shares[NAMED[colour]] = shares.get(NAMED[colour], 0.0) + found[colour]
    ordered = sorted(shares, key=lambda name: -shares[name])
    return tuple(n for i, n in enumerate(ordered[:2]) if i == 0 or shares[n] >= SECOND_COLOUR)


def with_article(name: str) -> str:
    """Put "a" or "an" before a name, unless it looks like a plural."""
    if name.endswith("s") and not name.endswith(("ss", "us")):
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def head(emoji: Emoji, named: tuple[str, ...], form: str) -> str:
    """Return what is depicted, such as "a turtle" or "green and brown reptiles"."""
    if form == "colour and kind":
        return f"{' and '.join(named)} {emoji.kind}"
    if form == "name and kind":
        return f"{with_article(emoji.name)}, {emoji.kind}"
    new = [colour for colour in named if colour not in emoji.name.split()]
    if form == "coloured name" and new:
        return f"{with_article(emoji.name)} in {' and '.join(new)}"
    return with_article(emoji.name)


def draw(emoji: Emoji, named: tuple[str, ...], background: int, rng: random.Random) -> str:
    """Draw a caption of a picture with the measured colours `named` on a background, by index."""
    words = [head(emoji, named, rng.choices(HEADS, HEAD_WEIGHTS)[0])]
    if emoji.tone and rng.random() < 0.9:
        words.append(emoji.tone)
    if rng.random() < 0.8:
        words.append(emoji.style)
    if background != WHITE or rng.random() < 0.1:
        words.append(f"{list(BACKGROUNDS)[background]} background")
    return ", ".join(words)
