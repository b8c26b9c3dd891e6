"""Load a model from a diffusers folder, the Hub or a single file, and add LoRAs to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intaglio_export.adapters import Adapter
from intaglio_export.adapters.fitting import check_parts
from intaglio_export.errors import ExportError, usage_error
from intaglio_export.options import Lora
from intaglio_export.precision import store_weights_in
from intaglio_export.sources import hub
from intaglio_export.sources.lora import fuse_loras
from intaglio_export.sources.pipeline_folder import (
    SETTINGS,
    PipelineFolder,
    freeze,
    license_of,
    load_pipeline,
    open_folder,
)
from intaglio_export.sources.single_file import held_parts, license_in, load_single_file
from intaglio_export.support.quiet import no_progress_bars, quiet

_FILES = (".safetensors", ".gguf")
_NAMED = " or ".join(_FILES)


@dataclass(frozen=True)
class Source:
    """A loaded model and what is known of its origin.

    `name` is the folder's name, the Hub name or the file's name without its suffix. `settings` is
    the settings.json beside the model. `loras` have been added to the weights, and `remarks` say
    what of them was left out.
    """

    adapter: Adapter
    name: str
    settings: Path | None = None
    license: str | None = None
    loras: tuple[Lora, ...] = ()
    remarks: Sequence[str] = ()


def open_source(
    source: str | Path,
    dtype: torch.dtype = torch.float32,
    text_encoders: str = "all",
    *,
    config: str | None = None,
    loras: Iterable[Lora] = (),
    report: hub.Report = lambda what: None,
) -> Source:
    """Load a model with the adapter of its class.

    The weights of matrix products have the type `dtype`; the VAE is float32.

    Args:
        source: a diffusers folder, org/name or org/name@revision on the Hub (a folder of that name
            wins), or a single .safetensors or .gguf file.
        dtype: the type of matrix products.
        text_encoders: a value of `options.TextEncoders`.
        config: for a single file, the folder or Hub name of the pipeline that it belongs to.
        loras: LoRAs to add to the weights, in order.
        report: is called with a text about the progress of downloads.

    Raises:
        ExportError: the source is missing, is not a diffusers pipeline, is of an unknown class, or
            one of its parts cannot be read.
    """
    loras = tuple(loras)
    with quiet(), no_progress_bars():
        path = Path(source)
        if path.is_file() or (path.suffix in _FILES and not path.is_dir()):
            pipeline, folder = _open_file(path, config, dtype, text_encoders, report)
            name, settings, license_name = path.stem, None, license_in(path)
        else:
            if config is not None:
                raise usage_error(
                    f"--config {config} is for a single {_NAMED} file, and {source} is not one;"
                    " leave out --config."
                )
            folder = _open_pipeline(
                str(source), dtype, text_encoders, lambda found: frozenset(), report
            )
            pipeline = load_pipeline(folder, dtype, {})
            name = path.resolve().name if path.is_dir() else str(source)
            beside = folder.path / SETTINGS
            settings = beside if beside.is_file() else None
            license_name = license_of(folder.path)
        remarks = fuse_loras(pipeline, loras, folder.adapter.family, dtype, text_encoders)
    freeze(pipeline)
    for part in ("transformer", *folder.adapter.text_encoders):
        if (network := getattr(pipeline, part, None)) is not None:
            store_weights_in(network, dtype)
    adapter = folder.adapter(pipeline, dtype)
    check_parts(adapter, str(source))
    return Source(adapter, name, settings, license_name, loras, remarks)


def _open_pipeline(
    name: str,
    dtype: torch.dtype,
    text_encoders: str,
    without: hub.Without,
    report: hub.Report,
) -> PipelineFolder:
    """Open the folder of that name, or else the model of that name on the Hub."""
    path = Path(name)
    if path.is_dir():
        return open_folder(path, text_encoders)
    if path.exists():
        raise ExportError(f"{name} is not a folder; give the folder of a diffusers pipeline.")
    if not hub.is_hub_name(name):
        raise ExportError(
            f"The source folder {name} does not exist, and {name} is not a Hub name (org/name)."
        )
    return hub.fetch(name, dtype, text_encoders, without, report)


def _open_file(
    path: Path, config: str | None, dtype: torch.dtype, text_encoders: str, report: hub.Report
) -> tuple[Any, PipelineFolder]:
    """Load the pipeline of a single file, and return it with the folder that completes it."""
    if path.suffix not in _FILES:
        raise ExportError(
            f"The source {path} is neither a folder nor a {_NAMED} file; give the folder of"
            " a diffusers pipeline, a Hub name or such a file."
        )
    if not path.is_file():
        raise ExportError(f"The source {path} does not exist.")
    if config is None:
        raise usage_error(
            f"The file {path} holds weights but no configuration; name the diffusers folder or Hub"
            " model that it is a version of with --config."
        )
    folder = _open_pipeline(
        config, dtype, text_encoders, lambda found: held_parts(path, found), report
    )
    return load_single_file(path, folder, dtype), folder
