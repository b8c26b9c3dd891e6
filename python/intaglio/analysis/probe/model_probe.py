"""Answers the eight questions of `intaglio probe` about a diffusers model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.analysis.channels import causes, detection, foreground, model_recorder, variance
from intaglio.analysis.channels.recorder import Statistics
from intaglio.analysis.experiments import (
    baselines,
    comparison,
    effects,
    failures,
    search,
    sink_effects,
)
from intaglio.analysis.experiments.gallery import Gallery
from intaglio.analysis.experiments.search import LARGEST
from intaglio.analysis.guidance.dg_settings import method_from_settings
from intaglio.analysis.guidance.negatives import Weaker
from intaglio.analysis.quality.judge import FOLDER as JUDGE
from intaglio.analysis.quality.judge import LEAST, Judge
from intaglio.analysis.report.output_folder import (
    PICTURES,
    SETTINGS,
    STATISTICS,
    check_output,
    read_prompts,
    versions,
    write_whole,
)
from intaglio.analysis.report.page import Report, Section, plain
from intaglio.torch_reference.fingerprint import fingerprint, identity
from intaglio.torch_reference.guidance import Method, Suppressed
from intaglio.torch_reference.model import Model
from intaglio_export.calibration.massive import ChannelStatistics
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.exporter import say_distilled
from intaglio_export.options import ModelSettings, read_settings
from intaglio_export.sources import Source, open_source

WEAKER = "weaker"
# Images for the statistics, images for each setting of the search, and w if no setting is known.
OBSERVED = 40
TRIED = 136
FIRST_WEIGHT = 1.0

# Called with what is being done, and the share of it that is done.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ProbeRequest:
    """What to probe and how; None stands for a file in the model's folder, or for its defaults."""

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
    """Answer the eight questions, and write the report and settings to `request.output`.

    Measurements are kept there too, so a probe that was stopped continues.

    Raises:
        ExportError: the model or a file beside it cannot be used; then nothing is written except
            what was measured before.
    """
    check_output(request.output)
    progress("Loading the model", 0.0)
    source = open_source(request.source)
    work = _Probe(request, source, progress)
    sections, settings = work.sections()
    report = Report(f"Massive activations of {source.name}", work.about(), sections)
    report.write(request.output)
    if settings is None:
        (request.output / SETTINGS).unlink(missing_ok=True)  # of an earlier run
    else:
        text = json.dumps(plain(settings), indent=1, allow_nan=False)
        write_whole(request.output / SETTINGS, f"{text}\n".encode())
    return report


class _Probe:
    """The parts of the report in order, and what they share."""

    def __init__(self, request: ProbeRequest, source: Source, progress: Progress) -> None:
        self.request, self.source, self.progress = request, source, progress
        adapter = source.adapter
        if len(adapter.blocks()) < 2:
            raise ExportError(
                f"{source.name} has {len(adapter.blocks()) or 'no'} transformer blocks, so there is"
                " nothing to probe: the effect of a block shows only in the blocks after it."
            )
        folder = Path(request.source)
        self.judge = _beside(request.judge, folder / JUDGE, Judge.open)
        self.weaker = _beside(
            request.weaker, folder / WEAKER, lambda path: Weaker.open(path, adapter)
        )
        features = self.judge.reference.shape[1] if self.judge else 0
        if self.judge and request.images <= max(features, LEAST):
            raise ExportError(
                f"--images {request.images}: a Fréchet distance needs more pictures than the judge"
                f" has features, {features}, and more than {LEAST}.",
                ExitCode.USAGE,
            )
        if request.seeds < effects.LEAST:
            raise ExportError(
                f"--seeds {request.seeds}: the experiments with channels need at least"
                f" {effects.LEAST} pictures.",
                ExitCode.USAGE,
            )
        known = ModelSettings(cfg_scale=request.cfg_scale)
        for path in (request.settings, source.settings):
            if path is not None:
                known = known.over(read_settings(path))
        self.known = known
        say_distilled(adapter, known)
        defaults = adapter.defaults()
        length = known.max_sequence_length or defaults.max_sequence_length or 1
        self.cfg_scale = defaults.cfg_scale if known.cfg_scale is None else known.cfg_scale
        progress("Encoding prompts", 0.0)
        # Without CFG nothing needs a null prompt, which a distilled model does not have.
        with_null = self.cfg_scale != 1.0
        self.model = Model(adapter, self._prompts(), length, self._grid(), with_null)
        if self.judge:
            self.judge.describe(
                self.model.images(self.model.noise([0]))
            )  # fails early if the judge does not take the size
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
                f"--prompts {path}: the judge only knows the classes of its own prompts; leave out"
                " --prompts or the judge."
            )
        return read_prompts(path)

    def _grid(self) -> tuple[int, int] | None:
        """Return the rows and columns of tokens of the requested size; None without one."""
        height, width = self.request.height, self.request.width
        if height is None and width is None:
            return None
        adapter = self.source.adapter
        unit = adapter.size_multiple
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
        """Return all eight, and the content of the settings file if there is a judge."""
        request = self.request
        statistics = self._record()
        channels = statistics.channels()
        setting, block, shown = self._setting(channels)
        sections = [detection.detection_section(statistics)]
        self.progress("Swapping timesteps and prompts", 0.0)
        shares = variance.explained(self.model, block, shown, request.steps)
        sections.append(causes.causes_section(statistics, block, shown, shares))
        maps, clean, sigmas = model_recorder.maps(self.model, block, shown, 1, request.steps)
        suppressed = setting.negative
        assert isinstance(suppressed, Suppressed)
        sections.append(
            detection.location_section(
                maps, clean, sigmas, block, shown, self._prompt_of(1), self._foreground(suppressed)
            )
        )
        self._begin("Changing channels", 10 * request.seeds)
        means = statistics["after.mean"][block].mean(0)
        text: list[int] = []
        if statistics.has("text"):
            text_statistics = statistics.channels("text")
            text = text_statistics.massive(block) or text_statistics.largest(block)[:LARGEST]
        sections.append(
            effects.effects_section(
                self.gallery,
                suppressed,
                self.cfg_scale,
                means,
                text,
                [channels.largest(k) for k in range(self.model.blocks)],
                request.seeds,
            )
        )
        found, settings = self._search(channels)
        self._begin("Comparing guidance methods", 14 * request.images)
        sections.append(
            comparison.comparison_section(self.gallery, setting, self.weaker, request.images)
        )
        self.setting = setting
        self._begin("Raising w", len(failures.FACTORS) * request.seeds)
        sections.append(failures.failures_section(self.gallery, setting, request.seeds))
        self._begin("Hiding keys", 3 * request.seeds)
        sinks = sink_effects.sinks_section(self.gallery, statistics, self.cfg_scale, request.seeds)
        return [*sections, found, sinks], settings

    def _foreground(self, suppressed: Suppressed) -> foreground.Found:
        """Compare the foreground of the setting's channels with that of random ones."""
        self.progress("Clustering tokens", 0.0)
        others = baselines.random_channels(suppressed, self.source.adapter.channels)
        channels = [*suppressed.channels, *others.channels]
        z, images = model_recorder.last_maps(
            self.model, suppressed.block, channels, range(OBSERVED), self.request.steps
        )
        count = len(suppressed.channels)
        return foreground.compare(
            z[..., :count], z[..., count:], images, suppressed.block, suppressed.channels
        )

    def _prompt_of(self, seed: int) -> str:
        """Return the prompt or class that `seed` draws."""
        i = seed % len(self.model.prompts)
        labels = self.model.conditions.get("class")
        return self.model.prompts[i] if labels is None else f"class {int(labels[i])}"

    def _record(self) -> Statistics:
        def done(share: float) -> None:
            self.progress("Recording hidden states", share)

        return model_recorder.record_model(
            self.model,
            range(OBSERVED),
            self.request.steps,
            self.request.output / STATISTICS,
            done,
        )

    def _setting(self, found: ChannelStatistics) -> tuple[Method, int, list[int]]:
        """Return the setting that parts 2 to 6 are about, its block, and the channels to show.

        If none is known, it suppresses the massive channels, or else the largest, after the block
        where they stand out most, at w 1.
        """
        method = method_from_settings(self.known, self.source.adapter)
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
                " better, and measures of detail reward noise. Name a judge with --judge"
                " (docs/probe.md)."
            ]
            return Section("Settings", claims), None
        # A Fréchet distance needs more pictures than features.
        tried = max(TRIED, self.judge.reference.shape[1] + 8)
        self._begin("Searching settings", 12 * tried + 3 * self.request.images)
        given = method_from_settings(self.known, self.source.adapter)
        section, settings = search.search(
            self.gallery, found, self.cfg_scale, given, tried, self.request.images
        )
        # The evidence has the steps of the probe; the settings keep those of the model.
        settings["steps"] = self.known.steps or self.source.adapter.defaults().steps
        settings["max_sequence_length"] = self.known.max_sequence_length
        if settings["max_sequence_length"] is None:
            del settings["max_sequence_length"]
        return section, settings

    def about(self) -> dict[str, Any]:
        """Return what was measured and how."""
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
        """Describe the setting that parts 2 to 6 are about, and the seeds of each part."""
        how = self.setting.negative
        assert isinstance(how, Suppressed)
        channels = ", ".join(map(str, how.channels))
        words = (
            f"cfg_scale {self.setting.cfg_scale:g}, w {self.setting.weight:g}, channels {channels}"
            f" after block {how.block}; seeds from {baselines.SEED} on for part 5, {effects.SEED}"
            f" for part 4, {failures.SEED} for 6, {search.SEED} and {search.CONFIRM_SEED} for 7"
        )
        known = self.known.steps
        if known not in (None, self.request.steps):
            words += f"; the setting is meant for {known} steps"
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
    """Open `given`, or else the folder `beside` the model; None if there is neither."""
    path = given or (beside if beside.is_dir() else None)
    return None if path is None else open_it(path)
