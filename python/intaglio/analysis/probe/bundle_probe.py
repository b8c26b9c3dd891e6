"""Answers the first three questions about an observed bundle, with the runtime and no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import intaglio
from intaglio.analysis.channels import causes, detection
from intaglio.analysis.channels.recorder import Statistics, record_bundle
from intaglio.analysis.report.output_folder import (
    SETTINGS,
    STATISTICS,
    check_output,
    read_prompts,
    versions,
)
from intaglio.analysis.report.page import Report, Section
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
    with _as_export_errors():
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
        f" {bundle.hidden_size} channels, an observed bundle",
        "conditions": f"{len(texts)} {drawn}, {len(SEEDS)} seeds, {steps} steps, no guidance",
        "versions": ", ".join(map(" ".join, versions().items())),
        "not answered": "effects, comparisons and settings need the diffusers model",
    }
    report = Report(f"Massive activations of {bundle.name}", about, sections)
    report.write(output)
    (output / SETTINGS).unlink(missing_ok=True)  # from an earlier probe of the model
    return report


@contextmanager
def _as_export_errors() -> Iterator[None]:
    """Raise the runtime's errors as those that the command prints."""
    try:
        yield
    except intaglio.Error as error:
        raise ExportError(str(error), ExitCode(error.exit_code)) from error


def _check(bundle: intaglio.Bundle) -> None:
    if bundle.prompt is not None and not bundle.prompt.encoders:
        raise ExportError(
            f"The bundle {bundle.folder} has no text encoders for the prompts; probe the diffusers"
            " model instead."
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
        detection.detection_section(statistics),
        causes.causes_section(statistics, block, channels, {}),
        detection.location_section(maps, clean, sigmas, block, channels, shown),
    ]


def _maps(
    pipeline: intaglio.Pipeline, prompt: str, block: int, channels: list[int], steps: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Map channels over the image as `model_recorder.maps` does."""
    bundle = pipeline.bundle
    unit = bundle.size_multiple
    grid = bundle.defaults.height // unit, bundle.defaults.width // unit
    maps, clean, sigmas = [], [], []

    def on_step(step: intaglio.Step) -> None:
        columns = step.hidden_states(block)[0][:, channels].T
        maps.append(columns.reshape(len(channels), *grid))
        clean.append(np.asarray(step.preview()[0], np.float32) / 255)
        sigmas.append(step.sigma)

    request = {"class_label": 0} if bundle.classes is not None else {"prompt": prompt}
    pipeline.generate(
        **request,
        steps=steps,
        cfg_scale=1.0,
        dg_scale=0.0,
        on_step=on_step,
    )
    return np.stack(maps), np.stack(clean), sigmas
