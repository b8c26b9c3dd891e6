"""The first three questions, of an observed bundle: with the runtime, and without torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

import intaglio
from intaglio.analysis import presence
from intaglio.analysis.capture import record_bundle
from intaglio.analysis.folder import STATISTICS, check_output, read_prompts
from intaglio.analysis.gates import origins
from intaglio.analysis.page import Report
from intaglio_export.errors import ExitCode, ExportError

PROMPTS = ("a photograph of a red bicycle leaning on a stone wall", "a portrait of an old man")
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
        ExportError: the bundle cannot be opened, or was not exported with --observe.
    """
    check_output(output)
    progress("Opening the bundle", 0.0)
    try:
        pipeline = intaglio.Pipeline.open(folder, device="cpu")
    except intaglio.Error as error:
        raise ExportError(str(error), ExitCode(error.exit_code)) from error
    bundle = pipeline.bundle
    texts = read_prompts(prompts) if prompts else list(PROMPTS)
    statistics = record_bundle(
        pipeline,
        texts,
        SEEDS,
        steps,
        output / STATISTICS,
        lambda share: progress("Recording hidden states", share),
    )
    found = statistics.channels()
    with_massive = found.blocks_with_massive() or range(len(found.ratio))
    block = max(with_massive, key=lambda k: float(found.ratio[k].max()))
    channels = (found.massive(block) or found.largest(block))[:3]
    maps, clean, sigmas = _maps(pipeline, texts[0], block, channels, steps)
    sections = [
        presence.presence(statistics),
        origins(statistics, block, channels, {}),
        presence.where(maps, clean, sigmas, block, channels, texts[0]),
    ]
    about = {
        "model": f"{bundle.name} ({bundle.family}), {bundle.blocks} blocks of"
        f" {bundle.channels} channels, an observed bundle",
        "conditions": f"{len(texts)} prompts, {len(SEEDS)} seeds, {steps} steps, no guidance",
        "versions": ", ".join(f"{n} {metadata.version(n)}" for n in ("intaglio", "numpy")),
        "not answered": "what the channels do, comparisons and settings need the diffusers model",
    }
    report = Report(f"Massive activations of {bundle.name}", about, sections)
    report.write(output)
    return report


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
