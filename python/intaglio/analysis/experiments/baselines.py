"""The methods that Detail Guidance is compared with, set up so that the comparison is fair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from intaglio.analysis.experiments.gallery import Gallery
from intaglio.analysis.guidance.negatives import Blurred, Skipped, Weaker, WithoutKey
from intaglio.torch_reference.guidance import Method, Negative, Suppressed

SEED = 100_000
PILOT_SEED, PILOT = 90_000, 80
# How many sets of random channels are moved as far as DG's.
RANDOM = 3
# At most this many pictures of each method but the two that the question is about are drawn.
OTHERS = 500
RADIUS = 1.0  # latent cells of the blur
# A weight too small to change the run of CFG alone, so that only the negative branch is measured.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Names:
    """What methods are called. Without CFG, DG alone is compared with no guidance."""

    cfg: bool

    @property
    def base(self) -> str:
        """The method without DG."""
        return "cfg" if self.cfg else "none"

    @property
    def base_in_words(self) -> str:
        return "CFG alone" if self.cfg else "no guidance"

    def plus(self, negative: str) -> str:
        """The method with that negative branch."""
        return f"cfg+{negative}" if self.cfg else negative

    def seeds(self, name: str, images: int) -> range:
        """Return the seeds of the method `name`; the search for settings uses none of them."""
        main = name in (self.base, self.plus("dg"))  # what the question is about
        return range(SEED, SEED + (images if main else min(images, OTHERS)))


def names_at(cfg_scale: float) -> Names:
    """Return the names of methods with that cfg_scale."""
    return Names(cfg_scale != 1.0)


@dataclass(frozen=True)
class Pilot:
    """Measurements that set up the methods: omega of the setting, or None where it is not defined,
    and the mean of sigma |D_c - D_n| of each negative branch."""

    omega: float | None
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
        "no top key": WithoutKey("top"),
        "no random key": WithoutKey("random"),
    }
    hidden_size = gallery.model.adapter.channels
    for draw in range(RANDOM):
        found[f"random as far {draw + 1}"] = random_channels(setting.negative, hidden_size, draw)
    if weaker is not None:
        found["autoguidance"] = weaker
    return found


def run_pilot(gallery: Gallery, setting: Method, others: Mapping[str, Negative]) -> Pilot:
    """Measure what `methods_to_compare` needs, on seeds that nothing else uses; `others` are
    `negatives`.

    Omega is measured along runs of the setting, and the norms along runs without DG, on the clean
    image that each step implies, within the setting's window.
    """
    pilot_seeds = range(PILOT_SEED, PILOT_SEED + PILOT)
    drawn = gallery.draw(setting, pilot_seeds, omega=True).values
    omega = float(drawn["omega"].mean()) if "omega" in drawn else None
    norms = {}
    for name, negative in others.items():
        method = replace(setting, weight=NEGLIGIBLE, negative=negative)
        norms[name] = float(gallery.draw(method, pilot_seeds, omega=True)["negative_norm"].mean())
    return Pilot(omega, norms)


def methods_to_compare(
    gallery: Gallery, setting: Method, pilot: Pilot, others: Mapping[str, Negative]
) -> dict[str, Method]:
    """Return the methods by name, the most important ones first; `others` are `negatives`."""
    assert isinstance(setting.negative, Suppressed)
    names = names_at(setting.cfg_scale)
    random = random_channels(setting.negative, gallery.model.adapter.channels)
    methods = {
        "none": Method(),
        names.base: Method(setting.cfg_scale),
        names.plus("dg"): setting,
    }
    if pilot.omega is not None:
        methods["cfg at omega"] = Method(round(pilot.omega, 4))
    methods[names.plus("random")] = replace(setting, negative=random)
    methods["dg"] = replace(setting, cfg_scale=1.0)
    for name, negative in others.items():
        if name != "dg":
            weight = round(pilot.weight(name, setting), 4)
            methods[names.plus(name)] = replace(setting, weight=weight, negative=negative)
    return methods
