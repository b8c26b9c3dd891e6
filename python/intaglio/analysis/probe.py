"""`intaglio probe` from end to end: seven questions about a model, answered by measurement."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.analysis import (
    arms,
    effects,
    failures,
    observation,
    origins,
    presence,
    search,
    variance,
)
from intaglio.analysis.capture import Statistics
from intaglio.analysis.comparison import comparison
from intaglio.analysis.folder import (
    PICTURES,
    SETTINGS,
    STATISTICS,
    check_output,
    read_prompts,
    versions,
    write_whole,
)
from intaglio.analysis.gallery import Gallery
from intaglio.analysis.judge import FOLDER as JUDGE
from intaglio.analysis.judge import LEAST, Judge
from intaglio.analysis.methods import Method, Suppressed, Weaker
from intaglio.analysis.page import Report, Section, plain
from intaglio.analysis.sampler import Model, fingerprint, identity
from intaglio.analysis.search import LARGEST
from intaglio.analysis.setting import method_of
from intaglio_export.calibration.massive import ChannelStatistics
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.options import ModelSettings, read_settings
from intaglio_export.sources import Source, open_source

WEAKER = "weaker"
# Images that statistics are taken of, that each setting of the search gets, and w to start from.
OBSERVED = 40
TRIED = 136
FIRST_WEIGHT = 1.0

# What is being done, and the share of it that is done.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ProbeRequest:
    """What to probe and how; None stands for what lies beside the model, or for its defaults."""

    source: str
    output: Path
    prompts: Path | None = None
    judge: Path | None = None
    weaker: Path | None = None
    settings: Path | None = None
    cfg_scale: float | None = None
    height: int | None = None
    width: int | None = None
    steps: int = 6
    images: int = 136
    seeds: int = 64


def probe(request: ProbeRequest, progress: Progress) -> Report:
    """Answer the seven questions, and write the report and settings to `request.output`.

    What was measured is kept there too: a probe that was stopped goes on.

    Raises:
        ExportError: the model or what lies beside it cannot be used; nothing is written but what
            was measured before.
    """
    check_output(request.output)
    progress("Loading the model", 0.0)
    source = open_source(request.source)
    work = _Work(request, source, progress)
    sections, settings = work.sections()
    report = Report(f"Massive activations of {source.name}", work.about(), sections)
    report.write(request.output)
    if settings is None:
        (request.output / SETTINGS).unlink(missing_ok=True)  # an earlier run's
    else:
        text = json.dumps(plain(settings), indent=1, allow_nan=False)
        write_whole(request.output / SETTINGS, f"{text}\n".encode())
    return report


class _Work:
    """The parts in order, and what they share."""

    def __init__(self, request: ProbeRequest, source: Source, progress: Progress) -> None:
        self.request, self.source, self.progress = request, source, progress
        adapter = source.adapter
        if len(adapter.blocks()) < 2:
            raise ExportError(
                f"{source.name} has {len(adapter.blocks()) or 'no'} transformer blocks, so there is"
                " nothing to probe: what a block does is seen in those behind it."
            )
        folder = Path(request.source)
        self.judge = _beside(request.judge, folder / JUDGE, Judge.open)
        self.weaker = _beside(
            request.weaker, folder / WEAKER, lambda path: Weaker.open(path, adapter)
        )
        features = self.judge.reference.shape[1] if self.judge else 0
        if self.judge and request.images <= max(features, LEAST):
            raise ExportError(
                f"--images {request.images}: the judge has {features} features, and a Fréchet"
                f" distance needs more pictures than that, and more than {LEAST}.",
                ExitCode.USAGE,
            )
        if request.seeds < effects.LEAST:
            raise ExportError(
                f"--seeds {request.seeds}: intervals of what channels do need at least"
                f" {effects.LEAST} pictures.",
                ExitCode.USAGE,
            )
        known = ModelSettings(cfg_scale=request.cfg_scale)
        for path in (request.settings, source.settings):
            if path is not None:
                known = known.over(read_settings(path))
        self.known = known
        defaults = adapter.defaults()
        length = known.max_sequence_length or defaults.max_sequence_length or 1
        self.cfg_scale = defaults.cfg_scale if known.cfg_scale is None else known.cfg_scale
        progress("Encoding prompts", 0.0)
        self.model = Model(adapter, self._prompts(), length, self._grid())
        if self.judge:
            self.judge.describe(self.model.images(self.model.noise([0])))  # does it take the size
        self.gallery = Gallery(
            self.model,
            self.judge,
            request.output / PICTURES,
            request.steps,
            identity(self.model),
            self._drawn,
        )
        self._what, self._images, self._total = "", 0, 1

    def _prompts(self) -> list[str]:
        path = self.request.prompts
        if path is None:
            return list(self.judge.prompts) if self.judge else [p for p in PROMPTS if p]
        if self.judge:
            raise ExportError(
                f"--prompts {path}: the judge knows the classes of its own prompts only; leave one"
                " of the two out."
            )
        return read_prompts(path)

    def _grid(self) -> tuple[int, int] | None:
        """Tokens of the size that was asked for."""
        height, width = self.request.height, self.request.width
        if height is None and width is None:
            return None
        adapter = self.source.adapter
        unit = adapter.latent().vae_scale_factor * adapter.patch_size
        sides = [side or adapter.default_side for side in (height, width)]
        for flag, side in zip(("--height", "--width"), sides, strict=True):
            if side < unit or side % unit:
                raise ExportError(
                    f"{flag} {side}: sizes of this model are multiples of {unit}.", ExitCode.USAGE
                )
        return sides[0] // unit, sides[1] // unit

    def _drawn(self, images: int) -> None:
        self._images += images
        self.progress(self._what, min(1.0, self._images / self._total))

    def _begin(self, what: str, images: int) -> None:
        self._what, self._images, self._total = what, 0, images

    def sections(self) -> tuple[list[Section], dict[str, Any] | None]:
        """All seven, and the settings file's content where settings could be searched for."""
        request = self.request
        statistics = self._observe()
        channels = statistics.channels()
        setting, block, shown = self._setting(channels)
        sections = [presence.presence(statistics)]
        self.progress("Swapping timesteps and prompts", 0.0)
        shares = variance.explained(self.model, block, shown, request.steps)
        sections.append(origins.origins(statistics, block, shown, shares))
        maps, clean, sigmas = observation.maps(self.model, block, shown, 1, request.steps)
        sections.append(presence.where(maps, clean, sigmas, block, shown, self._drawn_for(1)))
        self._begin("Taking channels away", 8 * request.seeds)
        suppressed = setting.negative
        assert isinstance(suppressed, Suppressed)
        means = statistics["after.mean"][block].mean(0)
        text: list[int] = []
        if statistics.has("text"):
            of_text = statistics.channels("text")
            text = of_text.massive(block) or of_text.largest(block)[:LARGEST]
        sections.append(
            effects.effects(self.gallery, suppressed, self.cfg_scale, means, text, request.seeds)
        )
        found, settings = self._search(channels)
        self._begin("Comparing ways to guide", 12 * request.images)
        sections.append(comparison(self.gallery, setting, self.weaker, request.images))
        self.setting = setting
        self._begin("Raising w", len(failures.FACTORS) * request.seeds)
        sections.append(failures.failures(self.gallery, setting, request.seeds))
        return [*sections, found], settings

    def _drawn_for(self, seed: int) -> str:
        """Prompt or class of the picture of `seed`."""
        i = seed % len(self.model.prompts)
        labels = self.model.conditions.get("class")
        return self.model.prompts[i] if labels is None else f"class {int(labels[i])}"

    def _observe(self) -> Statistics:
        def done(share: float) -> None:
            self.progress("Recording hidden states", share)

        return observation.record_model(
            self.model,
            range(OBSERVED),
            self.request.steps,
            self.request.output / STATISTICS,
            done,
        )

    def _setting(self, found: ChannelStatistics) -> tuple[Method, int, list[int]]:
        """The setting in force: a known one, else the massive channels (or the largest) after the
        block where they stand out most, at w 1. Its block, and the channels to show."""
        method = method_of(self.known, self.source.adapter)
        if method is None:
            with_massive = found.blocks_with_massive() or range(len(found.ratio) - 1)
            block = max(with_massive, key=lambda k: float(found.ratio[k].max()))
            channels = found.massive(block) or found.largest(block)[:LARGEST]
            method = Method(
                self.cfg_scale, FIRST_WEIGHT, Suppressed(block, tuple(sorted(channels)))
            )
        assert isinstance(method.negative, Suppressed)
        block = method.negative.block
        shown = sorted(method.negative.channels, key=lambda c: -float(found.ratio[block, c]))
        return method, block, shown[:3]

    def _search(self, found: ChannelStatistics) -> tuple[Section, dict[str, Any] | None]:
        if self.judge is None:
            claims = [
                "No settings were searched for: without a judge nothing says which pictures are"
                " better, and detail alone rewards noise. Give one with --judge (docs/probe.md)."
            ]
            return Section("Settings", claims), None
        # A Fréchet distance needs more pictures than features.
        tried = max(TRIED, self.judge.reference.shape[1] + 8)
        self._begin("Searching settings", 12 * tried + 3 * self.request.images)
        given = method_of(self.known, self.source.adapter)
        section, settings = search.search(
            self.gallery, found, self.cfg_scale, given, tried, self.request.images
        )
        # What the probe measured with is in the evidence; the model keeps the steps it had.
        settings["steps"] = self.known.steps or self.source.adapter.defaults().steps
        settings["max_sequence_length"] = self.known.max_sequence_length
        if settings["max_sequence_length"] is None:
            del settings["max_sequence_length"]
        return section, settings

    def about(self) -> dict[str, Any]:
        """What was measured, and with what."""
        adapter = self.source.adapter
        rows, columns = self.model.grid
        drawn = "prompts" if adapter.classes() is None else "classes"
        return {
            "model": f"{self.source.name} ({adapter.family}), {self.model.blocks} blocks of"
            f" {adapter.channels} channels",
            "weights": f"fingerprint {fingerprint(adapter.transformer)[:16]}",
            "images": f"{rows} x {columns} tokens, {self.request.steps} steps of"
            f" {type(adapter.pipeline.scheduler).__name__}, {len(self.model.prompts)} {drawn}",
            "judge": f"{len(self.judge.classes)} classes, {len(self.judge.reference)} real images"
            if self.judge
            else "none",
            "setting": self._in_words(),
            "command": self._command(),
            "versions": ", ".join(map(" ".join, versions().items())),
        }

    def _in_words(self) -> str:
        """The setting that parts 2 to 6 are about, and how many pictures they draw of it."""
        how = self.setting.negative
        assert isinstance(how, Suppressed)
        channels = ", ".join(map(str, how.channels))
        words = (
            f"cfg_scale {self.setting.cfg_scale:g}, w {self.setting.weight:g}, channels {channels}"
            f" after block {how.block}; seeds from {arms.SEED} on for part 5, {effects.SEED} for"
            f" part 4, {failures.SEED} for 6, {search.SEED} and {search.CONFIRM_SEED} for 7"
        )
        known = self.known.steps
        if known not in (None, self.request.steps):
            words += f"; the setting is one for {known} steps"
        return words

    def _command(self) -> str:
        request = self.request
        given = {
            "prompts": request.prompts,
            "judge": request.judge,
            "weaker": request.weaker,
            "settings": request.settings,
            "cfg-scale": request.cfg_scale,
            "height": request.height,
            "width": request.width,
            "steps": request.steps,
            "images": request.images,
            "seeds": request.seeds,
        }
        flags = (f"--{name} {value}" for name, value in given.items() if value is not None)
        return " ".join([f"intaglio probe {request.source} -o {request.output}", *flags])


def _beside(given: Path | None, beside: Path, open_it: Callable[[Path], Any]) -> Any:
    """What was given, else what lies beside the model, opened; None where there is neither."""
    path = given or (beside if beside.is_dir() else None)
    return None if path is None else open_it(path)
