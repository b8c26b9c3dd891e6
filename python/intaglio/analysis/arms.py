"""Part 5: what Detail Guidance is compared with, set up so that comparing is fair."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from intaglio.analysis.gallery import Gallery
from intaglio.analysis.methods import (
    Blurred,
    Method,
    Negative,
    Skipped,
    Suppressed,
    Weaker,
)

SEED = 100_000
PILOT_SEED, PILOT = 90_000, 80
# Draws of random channels that are moved as far as DG's.
RANDOM = 3
# The arms that the question is about; of the others no more than OTHERS pictures are drawn.
MAIN = ("cfg", "cfg+dg")
OTHERS = 500
RADIUS = 1.0  # latent cells of the blur
# So little that the run is that of CFG alone, while the negative branch is run and measured.
UNFELT = 1e-9


@dataclass(frozen=True)
class Pilot:
    """What the arms are set up by: omega of the setting, and norms of sigma (D_c - D_n) by name."""

    omega: float
    norms: dict[str, float]

    def weight(self, name: str, setting: Method) -> float:
        """At which the term of `name` is as long as the setting's."""
        return setting.weight * self.norms["dg"] / self.norms[name]


def random_channels(suppressed: Suppressed, width: int, draw: int = 0) -> Suppressed:
    """As many channels drawn at random from the others, the control of the choice of channels."""
    others = np.setdiff1d(np.arange(width), suppressed.channels)
    generator = np.random.default_rng(draw)
    chosen = generator.choice(others, len(suppressed.channels), replace=False)
    return replace(suppressed, channels=tuple(sorted(int(c) for c in chosen)), ref=None)


def negatives(gallery: Gallery, setting: Method, weaker: Weaker | None) -> dict[str, Negative]:
    """What DG is compared with, by name; `dg` itself is among them."""
    assert isinstance(setting.negative, Suppressed)
    found: dict[str, Negative] = {
        "dg": setting.negative,
        "blurred": Blurred(RADIUS),
        "skip-layer": Skipped(gallery.model.blocks // 2),
    }
    width = gallery.model.adapter.channels
    for draw in range(RANDOM):
        found[f"random as far {draw + 1}"] = random_channels(setting.negative, width, draw)
    if weaker is not None:
        found["autoguidance"] = weaker
    return found


def pilot(gallery: Gallery, setting: Method, weaker: Weaker | None) -> Pilot:
    """Measure on seeds of its own what `arms` needs: omega on runs of the setting, and norms along
    runs of CFG alone, on the clean image that each step means, within the setting's window."""
    seeds = range(PILOT_SEED, PILOT_SEED + PILOT)
    omega = float(gallery.draw(setting, seeds, omega=True)["omega"].mean())
    norms = {}
    for name, negative in negatives(gallery, setting, weaker).items():
        method = replace(setting, weight=UNFELT, negative=negative)
        norms[name] = float(gallery.draw(method, seeds, omega=True)["negative_norm"].mean())
    return Pilot(omega, norms)


def seeds(name: str, images: int) -> range:
    """Of the arm `name`, and none that the choice of settings has seen."""
    return range(SEED, SEED + (images if name in MAIN else min(images, OTHERS)))


def arms(
    gallery: Gallery, setting: Method, found: Pilot, weaker: Weaker | None
) -> dict[str, Method]:
    """The methods that are compared, by name, the dearest questions first."""
    assert isinstance(setting.negative, Suppressed)
    cfg = Method(setting.cfg_scale)
    random = random_channels(setting.negative, gallery.model.adapter.channels)
    methods = {
        "none": Method(),
        "cfg": cfg,
        "cfg+dg": setting,
        "cfg at omega": Method(round(found.omega, 4)),
        "cfg+random": replace(setting, negative=random),
        "dg": replace(setting, cfg_scale=1.0),
    }
    for name, negative in negatives(gallery, setting, weaker).items():
        if name != "dg":
            weight = round(found.weight(name, setting), 4)
            methods[f"cfg+{name}"] = replace(setting, weight=weight, negative=negative)
    return methods
