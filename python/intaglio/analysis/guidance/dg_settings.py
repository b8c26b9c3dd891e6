"""The settings of Detail Guidance in a settings file, as a guidance method."""

from __future__ import annotations

from intaglio.torch_reference.guidance import Method, Suppressed
from intaglio_export.adapters import Adapter
from intaglio_export.errors import ExportError
from intaglio_export.options import ModelSettings


def method_from_settings(settings: ModelSettings, adapter: Adapter) -> Method | None:
    """Return the method that `settings` describe; None if they name no channels or no weight.

    Raises:
        ExportError: the model has no such block or channel.
    """
    channels = settings.channel_choice()
    if settings.block is None or not settings.dg_scale or channels is None or not channels.channels:
        return None
    if settings.block >= len(adapter.blocks()):
        raise ExportError(
            f"The settings name block {settings.block}; the model has blocks 0 to"
            f" {len(adapter.blocks()) - 1}."
        )
    if wrong := [c for c in channels.channels if c >= adapter.channels]:
        raise ExportError(
            f"The settings name channel {wrong[0]}; the model has channels 0 to"
            f" {adapter.channels - 1}."
        )
    first, last = settings.keep_range()
    suppressed = Suppressed(
        settings.block,
        tuple(channels.channels),
        (first, last),
        None if settings.ref is None else tuple(settings.ref),
    )
    start, end = settings.dg_window or (0.0, 1.0)
    cfg_start, cfg_end = settings.cfg_window or (0.0, 1.0)
    cfg_scale = settings.cfg_scale
    if cfg_scale is None:
        cfg_scale = adapter.defaults().cfg_scale
    return Method(cfg_scale, settings.dg_scale, suppressed, (start, end), (cfg_start, cfg_end))
