"""Adapters, one file per DiT family. To add a family, write its adapter and list it below."""

from __future__ import annotations

from intaglio_export.adapters.base import Adapter
from intaglio_export.adapters.chroma import ChromaAdapter
from intaglio_export.adapters.dit import DiTAdapter
from intaglio_export.adapters.flux import FluxAdapter, FluxKontextAdapter
from intaglio_export.adapters.flux2 import Flux2DevAdapter, Flux2KleinAdapter
from intaglio_export.adapters.krea2 import Krea2Adapter
from intaglio_export.adapters.pixart_sigma import PixArtSigmaAdapter
from intaglio_export.adapters.qwen_image import QwenImageAdapter
from intaglio_export.adapters.sd3 import SD3Adapter
from intaglio_export.adapters.z_image import ZImageAdapter

ADAPTERS: tuple[type[Adapter], ...] = (
    SD3Adapter,
    FluxAdapter,
    FluxKontextAdapter,
    DiTAdapter,
    PixArtSigmaAdapter,
    QwenImageAdapter,
    Flux2KleinAdapter,
    Flux2DevAdapter,
    ChromaAdapter,
    ZImageAdapter,
    Krea2Adapter,
)


def adapter_for(pipeline_class: str) -> type[Adapter] | None:
    """Return the adapter of a diffusers pipeline class, or None."""
    for adapter in ADAPTERS:
        if pipeline_class in adapter.pipeline_classes:
            return adapter
    return None


__all__ = ["ADAPTERS", "Adapter", "adapter_for"]
