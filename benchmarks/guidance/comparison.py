"""Choose each method's setting on some seeds, and compare the methods on others."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.guidance.methods import BASE, Setting, equal_steps, grids, row_blocks, weaker_share
from intaglio.analysis.experiments.baselines import NEGLIGIBLE, random_channels
from intaglio.analysis.experiments.comparison import against, measured
from intaglio.analysis.experiments.gallery import Gallery, Pictures
from intaglio.analysis.guidance.dg_settings import method_from_settings
from intaglio.analysis.guidance.negatives import Weaker
from intaglio.analysis.quality.intervals import Interval
from intaglio.analysis.quality.judge import Judge
from intaglio.torch_reference.fingerprint import identity
from intaglio.torch_reference.guidance import Suppressed
from intaglio.torch_reference.model import Model
from intaglio_export.options import read_settings
from intaglio_export.sources import open_source
from models.training.flow import RepeatedRowAttention

SEARCH_SEED, CONFIRM_SEED, PILOT_SEED = 140_000, 170_000, 190_000
PILOT = 20  # images
RANDOM = "random channels"
DRAWS = 2  # of random channels


@dataclass(frozen=True)
class Sizes:
    """How many images choose each setting and how many confirm it, and the base's steps."""

    tried: int
    images: int
    steps: int | None = None


class Bench:
    """The model with its judge, and what a run may cost; pictures are kept in `folder`."""

    def __init__(self, model: Path, folder: Path, steps: int | None = None) -> None:
        adapter = open_source(model).adapter
        settings = read_settings(model / "settings.json")
        self.judge = Judge.open(model / "judge")
        length = settings.max_sequence_length or 1
        self.model = Model(adapter, self.judge.prompts, length)
        self.weaker = Weaker.open(model / "weaker", adapter)
        self.share = weaker_share(self.model, self.weaker)
        given = method_from_settings(settings, adapter)
        assert given is not None, "the model's settings have no Detail Guidance"
        self.given = given
        self.steps = steps or settings.steps or adapter.defaults().steps
        self.budget = row_blocks(given, self.steps, self.model.blocks, self.share)
        self.folder = folder
        self._identity = identity(self.model)
        # The pipeline has no T5, whose rows are zeros; one of them stands for all.
        for transformer in (adapter.transformer, self.weaker.transformer):
            transformer.set_attn_processor(RepeatedRowAttention(length))
        self.model.shorten(self.model.conditions["text"].shape[1] - length + 1)

    def equal_steps(self, setting: Setting) -> int:
        """Return the number of steps with which `setting` costs as much as the base."""
        return equal_steps(setting.method, self.budget, self.model.blocks, self.share)

    def row_blocks(self, setting: Setting) -> float:
        """Return rows times blocks of a run of that many steps."""
        steps = self.equal_steps(setting)
        return row_blocks(setting.method, steps, self.model.blocks, self.share)

    def draw(self, setting: Setting, seeds: Sequence[int]) -> Pictures:
        """Draw `seeds` in bfloat16, which takes half the time, or read what was drawn before."""
        steps = self.equal_steps(setting)
        gallery = Gallery(self.model, self.judge, self.folder, steps, self._identity)
        return gallery.draw_changed("bfloat16", setting.method, _bfloat16, seeds)

    def random_settings(self, chosen: Setting) -> list[Setting]:
        """Return settings that move random channels by as much as `chosen` moves its own.

        The means of sigma |D_c - D_n| are measured along runs of CFG alone.
        """
        own = chosen.method.negative
        assert isinstance(own, Suppressed)
        gallery = Gallery(self.model, self.judge, self.folder, self.steps, self._identity)
        seeds = range(PILOT_SEED, PILOT_SEED + PILOT)

        def moved(negative: Suppressed) -> float:
            method = replace(chosen.method, negative=negative, weight=NEGLIGIBLE)
            return float(gallery.draw(method, seeds, omega=True)["negative_norm"].mean())

        length = moved(own)
        found = []
        for draw in range(DRAWS):
            negative = random_channels(own, self.model.adapter.channels, draw)
            weight = round(chosen.method.weight * length / moved(negative), 3)
            method = replace(chosen.method, negative=negative, weight=weight)
            channels = ", ".join(map(str, negative.channels))
            options = chosen.runtime and {
                **chosen.runtime, "dg_scale": weight, "ma_channels": list(negative.channels)
            }  # fmt: skip
            words = f"cfg {method.cfg_scale:g}, w {weight:g}, m {own.block}, channels {channels}"
            found.append(Setting(method, words, options))
        return found

    def own_setting(self) -> Setting:
        """Return the model's own setting of CFG+DG."""
        base = grids(self.model, self.given, self.weaker)[BASE]
        return next(setting for setting in base if setting.method == self.given)


def _bfloat16() -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


_bench: Bench  # of a worker process


def _open(model: Path, folder: Path, steps: int | None) -> None:
    global _bench
    torch.set_num_threads(1)
    _bench = Bench(model, folder, steps)


def _try(setting: Setting, images: int) -> dict[str, float]:
    seeds = range(SEARCH_SEED, SEARCH_SEED + images)
    return measured(_bench.draw(setting, seeds), _bench.judge)


def _random(chosen: Setting) -> list[Setting]:
    return _bench.random_settings(chosen)


def _draw(setting: Setting, start: int, stop: int) -> None:
    _bench.draw(setting, range(start, stop))


def _compare(base: Setting, setting: Setting, images: int) -> tuple[Any, Any, Any]:
    seeds = range(CONFIRM_SEED, CONFIRM_SEED + images)
    pictures = _bench.draw(setting, seeds)
    gaps = against(_bench.draw(base, seeds), pictures, _bench.judge) if setting != base else {}
    return measured(pictures, _bench.judge), gaps, pictures.images


@dataclass(frozen=True)
class Row:
    """A method with its best setting: what it costs, its measures, and their differences from
    the base's; `images` [n, H, W, 3] are its first pictures."""

    name: str
    setting: Setting
    steps: int
    row_blocks: float
    values: dict[str, float]
    gaps: dict[str, Interval]
    images: Any


@dataclass(frozen=True)
class Tried:
    """A setting of the search and its measures."""

    method: str
    setting: Setting
    steps: int
    values: dict[str, float]


def best(tried: Sequence[Tried], method: str) -> Setting:
    """Return the setting of a method with the smallest Fréchet distance."""
    ours = [one for one in tried if one.method == method]
    return min(ours, key=lambda one: one.values["frechet"]).setting


def compare(
    bench: Bench, model: Path, sizes: Sizes, processes: int
) -> tuple[list[Tried], list[Row]]:
    """Search and confirm in several processes, each with one thread."""
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), _open, (model, bench.folder, sizes.steps)
    )
    with pool:
        asked = grids(bench.model, bench.given, bench.weaker)
        tried = _search(pool, bench, asked, sizes.tried)
        base = best(tried, BASE)
        random = {RANDOM: pool.submit(_random, base).result()}
        tried += _search(pool, bench, random, sizes.tried)
        chosen = {name: best(tried, name) for name in asked | random}
        return tried, _confirm(pool, bench, chosen, sizes.images)


def _search(
    pool: ProcessPoolExecutor, bench: Bench, asked: dict[str, list[Setting]], images: int
) -> list[Tried]:
    waiting = [
        (name, setting, pool.submit(_try, setting, images))
        for name, settings in asked.items()
        for setting in settings
    ]
    tried = []
    for name, setting, values in waiting:
        tried.append(Tried(name, setting, bench.equal_steps(setting), values.result()))
        print(f"{name}: {setting.words}: {tried[-1].values['frechet']:.2f}", flush=True)
    return tried


def _confirm(
    pool: ProcessPoolExecutor, bench: Bench, chosen: dict[str, Setting], images: int
) -> list[Row]:
    base = chosen[BASE]
    # A batch of each method after the other: a run that is stopped can be resumed with fewer.
    size = 40
    drawn = [
        pool.submit(_draw, setting, start, min(start + size, CONFIRM_SEED + images))
        for start in range(CONFIRM_SEED, CONFIRM_SEED + images, size)
        for setting in chosen.values()
    ]
    for done in drawn:
        done.result()
    compared = {
        name: pool.submit(_compare, base, setting, images) for name, setting in chosen.items()
    }
    return [
        Row(
            name,
            setting,
            bench.equal_steps(setting),
            bench.row_blocks(setting),
            *compared[name].result(),
        )
        for name, setting in chosen.items()
    ]
