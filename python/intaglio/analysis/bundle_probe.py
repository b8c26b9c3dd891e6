"""The first three questions, of an observed bundle: with the runtime, and without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import intaglio
from intaglio.analysis import presence
from intaglio.analysis.capture import Statistics, record_bundle
from intaglio.analysis.folder import (
    SETTINGS,
    STATISTICS,
    check_output,
    read_prompts,
    versions,
)
from intaglio.analysis.origins import origins
from intaglio.analysis.page import Report, Section
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.errors import ExitCode, ExportError

SEEDS = range(4)


def probe_bundle(
    folder: Path,
    output: Path,
    prompts: Path | None,
    steps: int,
    progress: Callable[[str, float], None],
) -> Report:
    """Record an observed bundle's hidden states, and write the report to `output`.

    Raises:
        ExportError: the bundle cannot be opened or run, was not exported with --observe, or has no
            text encoders.
    """
    check_output(output)
    texts = read_prompts(prompts) if prompts else [p for p in PROMPTS if p]
    progress("Opening the bundle", 0.0)
    with _told_as_export_errors():
        pipeline = intaglio.Pipeline.open(folder, device="cpu")
        _check(pipeline.bundle)
        statistics = record_bundle(
            pipeline,
            texts,
            SEEDS,
            steps,
            output / STATISTICS,
            lambda share: progress("Recording hidden states", share),
        )
        sections = _sections(pipeline, statistics, texts[0], steps)
    bundle = pipeline.bundle
    drawn = "prompts" if bundle.classes is None else "classes"
    about = {
        "model": f"{bundle.name} ({bundle.family}), {bundle.blocks} blocks of"
        f" {bundle.channels} channels, an observed bundle",
        "conditions": f"{len(texts)} {drawn}, {len(SEEDS)} seeds, {steps} steps, no guidance",
        "versions": ", ".join(map(" ".join, versions().items())),
        "not answered": "what the channels do, comparisons and settings need the diffusers model",
    }
    report = Report(f"Massive activations of {bundle.name}", about, sections)
    report.write(output)
    (output / SETTINGS).unlink(missing_ok=True)  # of an earlier probe of the model
    return report


@contextmanager
def _told_as_export_errors() -> Iterator[None]:
    try:
        yield
    except intaglio.Error as error:
        raise ExportError(str(error), ExitCode(error.exit_code)) from error


def _check(bundle: intaglio.Bundle) -> None:
    if bundle.prompt is not None and not bundle.prompt.encoders:
        raise ExportError(
            f"The bundle {bundle.folder} has no text encoders for the prompts; probe the diffusers"
            " model."
        )
    if bundle.blocks < 2:
        raise ExportError(
            f"The bundle {bundle.folder} has {bundle.blocks} transformer block, so there is nothing"
            " to compare."
        )


def _sections(
    pipeline: intaglio.Pipeline, statistics: Statistics, prompt: str, steps: int
) -> list[Section]:
    found = statistics.channels()
    with_massive = found.blocks_with_massive() or range(len(found.ratio))
    block = max(with_massive, key=lambda k: float(found.ratio[k].max()))
    channels = (found.massive(block) or found.largest(block))[:3]
    maps, clean, sigmas = _maps(pipeline, prompt, block, channels, steps)
    shown = prompt if pipeline.bundle.classes is None else "class 0"
    return [
        presence.presence(statistics),
        origins(statistics, block, channels, {}),
        presence.where(maps, clean, sigmas, block, channels, shown),
    ]


def _maps(
    pipeline: intaglio.Pipeline, prompt: str, block: int, channels: list[int], steps: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """As `observation.maps`."""
    bundle = pipeline.bundle
    unit = bundle.latent.vae_scale_factor * bundle.patch_size
    grid = bundle.defaults.height // unit, bundle.defaults.width // unit
    maps, clean, sigmas = [], [], []

    def on_step(step: intaglio.Step) -> None:
        columns = step.hidden_states(block)[0][:, channels].T
        maps.append(columns.reshape(len(channels), *grid))
        clean.append(np.asarray(step.preview()[0], np.float32) / 255)
        sigmas.append(step.sigma)

    what = {"class_label": 0} if bundle.classes is not None else {"prompt": prompt}
    pipeline.generate(
        **what,
        steps=steps,
        cfg_scale=1.0,
        dg_scale=0.0,
        on_step=on_step,
    )
    return np.stack(maps), np.stack(clean), sigmas
