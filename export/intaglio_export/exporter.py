"""The whole export: load a model, find its channels, trace, write and verify its graphs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from intaglio_export.adapters import Adapter
from intaglio_export.adapters.base import Inputs
from intaglio_export.adapters.schedulers import check_scheduler
from intaglio_export.bundle import output_folder
from intaglio_export.bundle.chat_template import around_prompt
from intaglio_export.bundle.manifest import BundleParts, Suppression, build_manifest, write_manifest
from intaglio_export.bundle.tokenizer_tables import write_table
from intaglio_export.bundle.writing import Progress, Stage, release, write_stages
from intaglio_export.calibration.calibrate import calibrate
from intaglio_export.calibration.massive import ChannelStatistics
from intaglio_export.calibration.prompt_tokens import PromptTokens, recorded_tokens
from intaglio_export.calibration.recipes import Recipe, find_recipe
from intaglio_export.calibration.runs import branched
from intaglio_export.calibration.selection import (
    check_guidance,
    check_size,
    choose_block,
    choose_channels,
    disagreement,
)
from intaglio_export.errors import usage_error
from intaglio_export.graph_specs import ExportUnit
from intaglio_export.networks.encoders import text_encoder_unit, vae_decoder_unit, vae_encoder_unit
from intaglio_export.networks.transformer_graphs import transformer_units
from intaglio_export.options import (
    ANCHORED,
    QDQ,
    ChannelChoice,
    ExportRequest,
    ModelSettings,
    check_quantize,
    parse_lora,
    read_settings,
)
from intaglio_export.precision import DTYPES
from intaglio_export.sources import Source, open_source

_MEASURING = "Measuring channels"


def _no_progress(what: str, share: float) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class ExportResult:
    """The manifest that was written, the relative error of each graph, and remarks for the user."""

    manifest: dict[str, Any]
    errors: dict[str, float]
    remarks: list[str] = field(default_factory=list)


def export_bundle(request: ExportRequest, progress: Progress = _no_progress) -> ExportResult:
    """Export `request.source` to a verified bundle at `request.output`, replacing a bundle there.

    Raises:
        ExportError: the source, a setting or the output is wrong, or the bundle differs from the
            torch model. The output is then as it was before.
    """
    output_folder.check_output(request.output)
    check_quantize(request)
    progress("Loading the model", 0.0)
    source = open_source(
        request.source,
        DTYPES[request.dtype],
        request.text_encoders,
        config=request.config,
        loras=[parse_lora(text) for text in request.loras],
        report=lambda what: progress(what, 0.0),
    )
    adapter = source.adapter
    check_scheduler(adapter.pipeline.scheduler, adapter.prediction_type)
    settings, recipe, remarks = _settings(request, source)
    remarks += source.remarks
    block = choose_block(settings.block, len(adapter.blocks()))
    check_size(settings, adapter)
    check_guidance(settings, adapter)
    if settings.block is None:
        remarks.append(
            f"No block is known for this model, so channels are suppressed after the middle one,"
            f" {block}; --block chooses another."
        )
    if settings.dg_scale is None:
        remarks.append(
            "No dg_scale is known for this model, so the bundle's default is 0, which turns DG off."
        )
    remarks += say_distilled(adapter, settings)
    remarks += adapter.left_out()
    if not adapter.has_encoders:
        remarks.append(
            "The model comes without text encoders, so channels were measured on random embeddings."
        )
    remarks += _check_disk(request, adapter)
    length = settings.max_sequence_length or adapter.defaults().max_sequence_length or 1
    settings = ModelSettings(max_sequence_length=length).over(settings)
    _check_prompt(request, adapter, length)
    with recorded_tokens(adapter) as tokens:
        statistics, steps = _measure(adapter, length, progress)
    if request.text_encoders == "none":
        _drop_encoders(adapter)
    choice = settings.channel_choice() or ChannelChoice("auto")
    suppression = choose_channels(choice, block, statistics, settings.ref)
    if recipe is not None and recipe.settings.channels is not None:
        remarks += disagreement(recipe.name, suppression, statistics)
    max_abs = [round(float(value), 4) for value in statistics.max_abs]
    exact = tuple(sorted({c for k in range(len(max_abs)) for c in statistics.massive(k)}))
    graphs = _transformer(request, adapter, suppression, exact, steps)
    with output_folder.replacing(request.output) as work:
        manifest, errors = _write(
            request, source, settings, suppression, max_abs, graphs, tokens, work, progress
        )
    return ExportResult(manifest, errors, remarks)


def _measure(
    adapter: Adapter, length: int, progress: Progress
) -> tuple[ChannelStatistics, list[Inputs]]:
    """Return statistics of the channels, and the transformer's inputs in the measured runs."""
    progress(_MEASURING, 0.1)
    steps: list[Inputs] = []

    def show(share: float) -> None:
        progress(_MEASURING, 0.1 + 0.15 * share)

    return calibrate(adapter, length, show, record=steps.append), steps


def _check_prompt(request: ExportRequest, adapter: Adapter, length: int) -> None:
    """Check the text encoders and their chat templates, before the measurement encodes prompts.

    Raises:
        ExportError: there is none to quantise, or a tokenizer has no template or one that the
            runtime's tokenizer does not support.
    """
    prompt = adapter.prompt(length) if adapter.has_encoders else None
    layouts = prompt.encoders.values() if prompt else ()
    if request.quantize_encoders and not layouts:
        raise usage_error(
            f"--quantize-encoders {request.quantize_encoders}: {request.source} has no text"
            " encoders that a bundle holds; leave the option out."
        )
    for layout in layouts:
        if layout.template:
            around_prompt(getattr(adapter.pipeline, layout.tokenizer), layout.template)


def say_distilled(adapter: Adapter, settings: ModelSettings) -> list[str]:
    """Tell `adapter` what the settings say about distillation, or return what is guessed."""
    if settings.distilled is None:
        return adapter.guesses()
    adapter.distilled = settings.distilled
    return []


def _settings(
    request: ExportRequest, source: Source
) -> tuple[ModelSettings, Recipe | None, list[str]]:
    """Merge flags, --settings, the source's settings.json and a recipe, the first of these winning.

    Also returns the recipe, if there is one, and remarks about it.
    """
    merged = ModelSettings(block=request.block, channels=request.channels)
    remarks = []
    if request.settings is not None:
        merged = merged.over(read_settings(request.settings))
    if source.settings is not None:
        merged = merged.over(read_settings(source.settings))
    adapter = source.adapter
    recipe = find_recipe(adapter.family, adapter.config, adapter.pipeline.scheduler.config)
    if recipe is not None:
        if merged.channels is not None:
            recipe = replace(recipe, settings=replace(recipe.settings, channels=None))
        merged = merged.over(recipe.settings)
        remarks.append(f"Recipe {recipe.name}: {recipe.source}")
    return merged.over(ModelSettings(license=source.license)), recipe, remarks


def _write(
    request: ExportRequest,
    source: Source,
    settings: ModelSettings,
    suppression: Suppression,
    max_abs: list[float],
    graphs: dict[str, ExportUnit],
    tokens: dict[str, PromptTokens],
    work: Path,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Write and verify every file of the bundle in `work`.

    Returns the manifest and the relative errors.
    """
    adapter = source.adapter
    pipeline = adapter.pipeline
    assert settings.max_sequence_length is not None
    prompt = adapter.prompt(settings.max_sequence_length)
    encoders = prompt.encoders if prompt and request.text_encoders != "none" else {}
    texts = {
        name: text_encoder_unit(
            getattr(pipeline, name),
            name,
            layout,
            adapter.dtype,
            request.quantize_encoders,
            tokens[name] if request.quantize_encoders else None,
        )
        for name, layout in encoders.items()
    }
    decoder = vae_decoder_unit(adapter)
    encoder = vae_encoder_unit(adapter) if adapter.image_to_image else None
    for layout in encoders.values():
        write_table(
            getattr(pipeline, layout.tokenizer),
            layout.max_length,
            work / layout.tokenizer,
            lowercase=layout.lowercase,
            template=layout.template,
            pads_left=layout.pads_left,
        )
    stages = [
        Stage(adapter.transformer, list(graphs.values())),
        *(Stage(getattr(pipeline, name), [unit]) for name, unit in texts.items()),
        Stage(pipeline.vae, [decoder, encoder] if encoder else [decoder]),
    ]
    found = write_stages(stages, work, lambda what, done: progress(what, 0.25 + 0.7 * done))
    errors = {path: of.outputs for path, of in found.items()}
    progress("Writing the manifest", 0.98)
    parts = BundleParts(
        layout=request.layout,
        dtype=request.dtype,
        source=source.name,
        loras=source.loras,
        graphs={name: unit.spec for name, unit in graphs.items()},
        encoders={name: unit.spec for name, unit in texts.items()},
        vae_decoder=decoder.spec,
        vae_encoder=encoder.spec if encoder else None,
        suppression=suppression,
        prompt=prompt,
        max_abs=max_abs,
        settings=settings,
        errors=errors,
        differences={
            branch: error for of in found.values() for branch, error in of.differences.items()
        },
    )
    manifest = build_manifest(adapter, parts, work)
    write_manifest(manifest, work)
    return manifest, errors


def _transformer(
    request: ExportRequest,
    adapter: Adapter,
    suppression: Suppression,
    exact: tuple[int, ...],
    steps: list[Inputs],
) -> dict[str, ExportUnit]:
    """Return the transformer's graphs, quantised as asked but for the channels `exact`.

    `steps` are the inputs of the model's own runs.
    """
    graphs = transformer_units(
        adapter,
        request.layout,
        suppression.block,
        request.observe,
        anchored=request.quantize in ANCHORED,
    )
    if not request.quantize:
        return graphs
    runs: list[Inputs] = []
    quantized = list(graphs)
    if request.quantize in QDQ:
        quantized, runs = ["forked"], branched(adapter, steps, suppression)
    return graphs | {
        name: replace(
            graphs[name],
            spec=replace(graphs[name].spec, quantize=request.quantize, exact=exact),
            runs=runs,
        )
        for name in quantized
    }


def _drop_encoders(adapter: Adapter) -> None:
    """Free the text encoders, which were needed for the measurement only."""
    for name in adapter.text_encoders:
        if (encoder := getattr(adapter.pipeline, name)) is not None:
            release(encoder)


def _check_disk(request: ExportRequest, adapter: Adapter) -> list[str]:
    """Check that the bundle will fit, and return remarks about what fills the disk without use."""
    left = [
        f"{folder} is left of an export that was killed; delete it."
        for folder in output_folder.leftovers(request.output)
    ]
    advice = "".join(f"; {sentence.removesuffix('.')}" for sentence in left)
    output_folder.check_space(request.output, _weight_bytes(request, adapter), advice=advice)
    return left


def _weight_bytes(request: ExportRequest, adapter: Adapter) -> int:
    """Return the bytes of all weights that the bundle will hold."""
    absent = adapter.text_encoders if request.text_encoders == "none" else ()
    modules = [
        part
        for name, part in adapter.pipeline.components.items()
        if isinstance(part, nn.Module) and name not in absent
    ]
    return sum(p.nbytes for module in modules for p in module.parameters())
