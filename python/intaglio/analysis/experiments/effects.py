"""Part 4 of the report: what massive channels do, by changing them after one block."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intaglio.analysis.experiments.baselines import random_channels
from intaglio.analysis.experiments.gallery import KEPT, Gallery, Pictures
from intaglio.analysis.quality import intervals, measures
from intaglio.analysis.report import plots
from intaglio.analysis.report.page import Figure, Section, Table
from intaglio.torch_reference.guidance import Method, Suppressed
from intaglio.torch_reference.hooks import Change, replace_streams
from intaglio_export.adapters import Adapter

SEED = 50_000
LEAST = 64
BLUR = 0.7  # pixels, for the blurred pictures that serve as a control
SHOWN = 12
EVERYWHERE = " after every block"
COLLAPSED = 0.5  # of the correlation of large shapes


@dataclass(frozen=True)
class Intervention:
    """A change of the image stream, the text stream, or both, after a block."""

    hidden: Change | None = None
    text: Change | None = None


def zero(which: Sequence[int], tokens: torch.Tensor | None = None) -> Change:
    """Set channels to zero, on all tokens or on `tokens`."""

    def change(stream: torch.Tensor) -> torch.Tensor:
        changed = stream.clone()
        rows = slice(None) if tokens is None else tokens
        columns = changed[:, rows]
        columns[..., list(which)] = 0.0
        changed[:, rows] = columns
        return changed

    return change


@contextmanager
def zeroed_everywhere(adapter: Adapter, channels: Sequence[Sequence[int]]) -> Iterator[None]:
    """Set channels[k] to zero after block k, for every block."""
    with ExitStack() as stack:
        for block, which in enumerate(channels):
            stack.enter_context(replace_streams(adapter, block, zero(which)))
        yield


def interventions(
    suppressed: Suppressed,
    hidden_size: int,
    grid: tuple[int, int],
    means: NDArray[np.floating],
    text_channels: Sequence[int],
) -> dict[str, Intervention]:
    """Return the interventions by name.

    `means` [C] is each channel's mean z after the block. `text_channels` are set to zero in the
    text stream; they are empty for a model without one.
    """
    channels = list(suppressed.channels)
    others = [list(random_channels(suppressed, hidden_size, draw).channels) for draw in range(2)]
    middle = centre(grid)
    ref = torch.from_numpy(np.asarray(means, np.float32))

    def replaced(stream: torch.Tensor) -> torch.Tensor:
        changed = stream.clone()
        changed[..., channels] = ref[channels]
        return changed

    def as_strong(stream: torch.Tensor) -> torch.Tensor:
        """Move random channels towards zero and beyond, each token as far as zeroing moves it."""
        changed = stream.clone()
        far = stream[..., channels].norm(dim=-1, keepdim=True)
        direction = stream[..., others[0]]
        changed[..., others[0]] -= direction * far / direction.norm(dim=-1, keepdim=True).clip(1e-6)
        return changed

    found = {
        "zeroed": Intervention(zero(channels)),
        "random zeroed": Intervention(zero(others[0])),
        "random zeroed, second draw": Intervention(zero(others[1])),
        "random, as far moved": Intervention(as_strong),
        "replaced by means": Intervention(replaced),
        "zeroed on middle tokens": Intervention(zero(channels, middle)),
    }
    if text_channels:
        found["text's zeroed"] = Intervention(text=zero(text_channels))
    return found


def centre(grid: tuple[int, int]) -> torch.Tensor:
    """Return the indices of the tokens in the middle half of each side."""
    rows, columns = grid
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4] = True
    return mask.flatten().nonzero().flatten()


def effects_section(
    gallery: Gallery,
    suppressed: Suppressed,
    cfg_scale: float,
    means: NDArray[np.floating],
    text_channels: Sequence[int],
    largest: Sequence[Sequence[int]],
    images: int,
) -> Section:
    """Draw with each intervention after block `suppressed.block`, in all branches, and compare with
    the same seeds without one.

    `largest` are the channels of each block, the largest first.
    """
    model, method = gallery.model, Method(cfg_scale)
    seeds = range(SEED, SEED + images)
    base = gallery.draw(method, seeds)
    drawn: dict[str, Pictures] = {}
    known = json.dumps([suppressed.block, suppressed.channels, list(text_channels), means.tolist()])
    done = interventions(suppressed, model.adapter.channels, model.grid, means, text_channels)
    for name, change in done.items():

        def scope(change: Intervention = change) -> AbstractContextManager[None]:
            return replace_streams(model.adapter, suppressed.block, change.hidden, change.text)

        drawn[name] = gallery.draw_changed(f"{name} {known}", method, scope, seeds)
    drawn |= _everywhere(gallery, method, suppressed, largest, seeds)
    found = {name: differences(base, pictures, gallery) for name, pictures in drawn.items()}
    found["blurred picture"] = _blur_control(base)
    locality = _locality(base, drawn["zeroed on middle tokens"], drawn["zeroed"], model.grid)
    rows = {"untouched": base.images[:SHOWN]} | {
        name: pictures.images[:SHOWN] for name, pictures in drawn.items()
    }
    columns = list(found["zeroed"])
    table = Table(
        ["after the intervention", *(c.replace("_", " ") for c in columns)],
        [
            [name, *(str(values[c]) if c in values else "" for c in columns)]
            for name, values in found.items()
        ],
    )
    figures = [
        Figure(
            "effects.png",
            plots.gallery(rows),
            f"The same seeds untouched and with each intervention, after block {suppressed.block}"
            " or after every block.",
        ),
        Figure(
            "effects-intervals.png",
            plots.intervals({c: {n: v[c] for n, v in found.items() if c in v} for c in columns}),
            "Differences from the untouched pictures with 95 % intervals. Measures of detail are"
            " log ratios, except the spectrum slope, which is a difference.",
        ),
    ]
    numbers: dict[str, Any] = {
        "block": suppressed.block,
        "channels": list(suppressed.channels),
        "text_channels": list(text_channels),
        "images": images,
        "differences": found,
        "locality": locality,
    }
    claims = [*_claims(found, suppressed, images), _everywhere_sentence(found)]
    claims.append(_locality_sentence(locality))
    return Section("What they do", claims, [table], figures, numbers)


def _everywhere(
    gallery: Gallery,
    method: Method,
    suppressed: Suppressed,
    largest: Sequence[Sequence[int]],
    seeds: Sequence[int],
) -> dict[str, Pictures]:
    """Draw with as many of each block's largest channels at zero, and with random ones."""
    adapter, count = gallery.model.adapter, len(suppressed.channels)
    top = [list(channels[:count]) for channels in largest]
    others = [
        list(random_channels(Suppressed(k, tuple(channels)), adapter.channels, k).channels)
        for k, channels in enumerate(top)
    ]
    return {
        f"{name}{EVERYWHERE}": gallery.draw_changed(
            f"{name}{EVERYWHERE} {json.dumps(channels)}",
            method,
            partial(zeroed_everywhere, adapter, channels),
            seeds,
        )
        for name, channels in (("zeroed", top), ("random zeroed", others))
    }


def _everywhere_sentence(found: dict[str, dict[str, intervals.Interval]]) -> str:
    """Compare with arXiv 2605.13974, where pictures collapse without massive channels."""

    def said(name: str) -> str:
        values = found[name]
        word = f"large shapes correlate at {values['low_pass_similarity']}"
        if "class_agreement" in values:
            word += f" and the judge's class stays in {values['class_agreement']}"
        return word

    everywhere = found[f"zeroed{EVERYWHERE}"]["low_pass_similarity"]
    collapses = everywhere.high < COLLAPSED
    return (
        "Each block's largest channels, as many, zeroed after every block:"
        f" {said(f'zeroed{EVERYWHERE}')}; random channels: {said(f'random zeroed{EVERYWHERE}')};"
        f" after one block: {said('zeroed')}. arXiv 2605.13974 reports that pictures collapse"
        f" without massive channels; here they {'do' if collapses else 'do not'} (a correlation"
        f" below {COLLAPSED:g})."
    )


def differences(
    base: Pictures, changed: Pictures, gallery: Gallery
) -> dict[str, intervals.Interval]:
    """Return mean paired differences with intervals: of detail, and of what the pictures show."""
    found = {
        name: intervals.mean_interval(_log_ratio(name, base[name], changed[name]))
        for name in measures.DETAIL
    }
    similarity = measures.low_pass_similarity(base["low_pass"], changed["low_pass"])
    drift = measures.color_drift(base["lab"], changed["lab"])
    found["low_pass_similarity"] = intervals.mean_interval(similarity)
    found["color_drift"] = intervals.mean_interval(drift)
    if gallery.judge is not None:
        same = (base["class"] == changed["class"]).astype(np.float64)
        apart = np.linalg.norm(base["features"] - changed["features"], axis=1)
        scale = np.linalg.norm(base["features"], axis=1).mean()
        found["class_agreement"] = intervals.share_interval(same)
        found["feature_distance"] = intervals.mean_interval(apart / scale)
    return found


def _log_ratio(
    name: str, base: NDArray[np.floating], changed: NDArray[np.floating]
) -> NDArray[np.float64]:
    if name == "spectrum_slope":  # already logarithmic
        return np.asarray(changed - base, np.float64)
    ratio: NDArray[np.float64] = np.log(changed.clip(1e-9) / base.clip(1e-9))
    return ratio


def _blur_control(base: Pictures) -> dict[str, intervals.Interval]:
    """Measure what plain blur does to the kept pictures."""
    images = base.images.astype(np.float32) / 255
    blurred = measures.detail(measures.blur(images, BLUR))
    plain = measures.detail(images)
    found = {
        name: intervals.mean_interval(_log_ratio(name, plain[name], blurred[name]))
        for name in measures.DETAIL
    }
    similarity = measures.low_pass_similarity(
        measures.low_pass(images), measures.low_pass(measures.blur(images, BLUR))
    )
    return found | {"low_pass_similarity": intervals.mean_interval(similarity)}


def _locality(
    base: Pictures, middle: Pictures, everywhere: Pictures, grid: tuple[int, int]
) -> dict[str, Any]:
    """Return how many times as much pixels change (mean squared) on the middle tokens as elsewhere.

    "middle" is with these tokens changed alone. "everywhere" is with all tokens changed, because
    pictures vary more in their middle anyway.
    """
    rows, columns = grid
    mask = np.zeros(rows * columns, bool)
    mask[centre(grid).numpy()] = True
    height, width = base.images.shape[1:3]
    pixels = np.kron(mask.reshape(grid), np.ones((height // rows, width // columns))) > 0

    def ratio(changed: Pictures) -> float:
        change = ((base.images.astype(np.float64) - changed.images) / 255) ** 2
        per_pixel = change.mean((0, 3))
        return float(per_pixel[pixels].mean() / max(per_pixel[~pixels].mean(), 1e-12))

    return {
        "middle": ratio(middle),
        "everywhere": ratio(everywhere),
        "images": min(KEPT, len(base)),
        "tokens": int(mask.sum()),
    }


def _locality_sentence(locality: dict[str, Any]) -> str:
    middle, everywhere = locality["middle"], locality["everywhere"]
    times = middle / max(everywhere, 1e-12)
    word = "mostly local" if times > 3 else "not local" if times < 1.5 else "partly local"
    return (
        f"Zeroed on the {locality['tokens']} middle tokens only, pixels there change {middle:.1f}"
        f" times as much as the others (mean squared); zeroed everywhere, {everywhere:.1f} times:"
        f" the effect is {word}."
    )


def _claims(
    found: dict[str, dict[str, intervals.Interval]], suppressed: Suppressed, images: int
) -> list[str]:
    channels = ", ".join(map(str, suppressed.channels))
    claims = [
        f"Channels {channels} after block {suppressed.block}, {images} images each, 95 % intervals."
    ]
    names = ["zeroed", "random zeroed", "random, as far moved", "replaced by means"]
    for name in [*names, *(["text's zeroed"] if "text's zeroed" in found else [])]:
        values = found[name]
        words = [
            f"high-frequency energy changes by a factor {_factor(values['high_frequency_energy'])}",
            f"large shapes correlate at {values['low_pass_similarity'].measured:.3f}",
        ]
        if "class_agreement" in values:
            words.append(f"the judge's class stays in {values['class_agreement'].measured:.0%}")
        claims.append(f"{name.capitalize()}: {', '.join(words)}.")
    loss, control = (
        found[name]["high_frequency_energy"] for name in ("zeroed", "random, as far moved")
    )
    if loss.high < 0 and loss.high < control.low:
        claims.append(
            "Taking them away loses detail, and more than moving random channels as far does."
        )
    elif loss.high < 0:
        claims.append(
            "Taking them away loses detail, but no more than moving random channels as far does."
        )
    else:
        claims.append(
            "Taking them away does not lose high-frequency energy here, unlike what the papers"
            " report of large models."
        )
    return claims


def _factor(interval: intervals.Interval) -> str:
    low, value, high = np.exp([interval.low, interval.measured, interval.high])
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
