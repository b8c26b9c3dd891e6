"""The methods that Detail Guidance is compared with, set up so that the comparison is fair."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from intaglio.analysis.experiments.gallery import Gallery
from intaglio.analysis.guidance.negatives import Blurred, Skipped, Weaker
from intaglio.torch_reference.guidance import Method, Negative, Suppressed

SEED = 100_000
PILOT_SEED, PILOT = 90_000, 80
# How many sets of random channels are moved as far as DG's.
RANDOM = 3
# The methods that the question is about; at most OTHERS pictures of each of the rest are drawn.
MAIN = ("cfg", "cfg+dg")
OTHERS = 500
RADIUS = 1.0  # latent cells of the blur
# A weight too small to change the run of CFG alone, so that only the negative branch is measured.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Pilot:
    """Measurements that set up the methods: omega of the setting, and the mean of
    sigma |D_c - D_n| of each negative branch."""

    omega: float
    norms: dict[str, float]

    def weight(self, name: str, setting: Method) -> float:
        """Return the weight that makes the term of `name` as long as the setting's."""
        return setting.weight * self.norms["dg"] / self.norms[name]


def random_channels(suppressed: Suppressed, hidden_size: int, draw: int = 0) -> Suppressed:
    """Suppress as many channels, drawn at random from the others: the control of the choice."""
    others = np.setdiff1d(np.arange(hidden_size), suppressed.channels)
    generator = np.random.default_rng(draw)
    chosen = generator.choice(others, len(suppressed.channels), replace=False)
    return replace(suppressed, channels=tuple(sorted(int(c) for c in chosen)), ref=None)


def negatives(gallery: Gallery, setting: Method, weaker: Weaker | None) -> dict[str, Negative]:
    """Return the negative branches by name; `dg` is the setting's own."""
    assert isinstance(setting.negative, Suppressed)
    found: dict[str, Negative] = {
        "dg": setting.negative,
        "blurred": Blurred(RADIUS),
        "skip-layer": Skipped(gallery.model.blocks // 2),
    }
    hidden_size = gallery.model.adapter.channels
    for draw in range(RANDOM):
        found[f"random as far {draw + 1}"] = random_channels(setting.negative, hidden_size, draw)
    if weaker is not None:
        found["autoguidance"] = weaker
    return found


def run_pilot(gallery: Gallery, setting: Method, weaker: Weaker | None) -> Pilot:
    """Measure what `methods_to_compare` needs, on seeds that nothing else uses.

    Omega is measured along runs of the setting, and the norms along runs of CFG alone, on the
    clean image that each step implies, within the setting's window.
    """
    pilot_seeds = range(PILOT_SEED, PILOT_SEED + PILOT)
    omega = float(gallery.draw(setting, pilot_seeds, omega=True)["omega"].mean())
    norms = {}
    for name, negative in negatives(gallery, setting, weaker).items():
        method = replace(setting, weight=NEGLIGIBLE, negative=negative)
        norms[name] = float(gallery.draw(method, pilot_seeds, omega=True)["negative_norm"].mean())
    return Pilot(omega, norms)


def seeds(name: str, images: int) -> range:
    """Return the seeds of the method `name`; the search for settings uses none of them."""
    return range(SEED, SEED + (images if name in MAIN else min(images, OTHERS)))


def methods_to_compare(
    gallery: Gallery, setting: Method, pilot: Pilot, weaker: Weaker | None
) -> dict[str, Method]:
    """Return the methods by name, the most important ones first."""
    assert isinstance(setting.negative, Suppressed)
    cfg = Method(setting.cfg_scale)
    random = random_channels(setting.negative, gallery.model.adapter.channels)
    methods = {
        "none": Method(),
        "cfg": cfg,
        "cfg+dg": setting,
        "cfg at omega": Method(round(pilot.omega, 4)),
        "cfg+random": replace(setting, negative=random),
        "dg": replace(setting, cfg_scale=1.0),
    }
    for name, negative in negatives(gallery, setting, weaker).items():
        if name != "dg":
            weight = round(pilot.weight(name, setting), 4)
            methods[f"cfg+{name}"] = replace(setting, weight=weight, negative=negative)
    return methods
