"""The other networks of a bundle: text encoders, and the VAE's encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from intaglio_export.adapters.base import Adapter
from intaglio_export.adapters.fitting import widths
from intaglio_export.adapters.layouts import EncoderLayout
from intaglio_export.calibration.prompt_tokens import PromptTokens
from intaglio_export.graph_specs import Axis, ExportUnit, GraphSpec, TensorSpec
from intaglio_export.networks.language_models import TappedDecoder, check_taps
from intaglio_export.precision import LowPrecisionMatmuls


class _TextEncoder(nn.Module):
    """Map token_ids [n, L] int64 and, if masked, text_mask [n, L] to the chosen outputs.

    `hidden` [n, L, D] is CLIP's second-last hidden state or T5's last. `pooled` [n, P] is CLIP's
    projection, or its pooled output if it has no projection.
    """

    def __init__(self, encoder: nn.Module, outputs: Sequence[str], dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = encoder
        self._outputs = outputs
        self._dtype = dtype

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids, *mask = tensors
        clip = _is_clip(self.encoder)
        with LowPrecisionMatmuls(self._dtype, lambda: f"the {type(self.encoder).__name__}"):
            out = self.encoder(
                ids, attention_mask=mask[0] if mask else None, output_hidden_states=clip
            )
        made = {"hidden": out.hidden_states[-2] if clip else out.last_hidden_state}
        if "pooled" in self._outputs:
            embeds = getattr(out, "text_embeds", None)
            made["pooled"] = out.pooler_output if embeds is None else embeds
        return tuple(made[name] for name in self._outputs)


def _is_clip(encoder: Any) -> bool:
    return bool(encoder.config.model_type.startswith("clip"))


class _VaeDecoder(nn.Module):
    """Map an unscaled latent [n, C, h, w] to an image [n, 3, H, W] in [-1, 1] (not clamped)."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.vae = adapter.pipeline.vae
        self._adapter = adapter

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self._adapter.decode(tensors[0])


class _VaeEncoder(nn.Module):
    """Map an image [n, 3, H, W] in [-1, 1] to the unscaled mean of the latent [n, C, h, w]."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.vae = adapter.pipeline.vae
        self._adapter = adapter

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self._adapter.encode(tensors[0])


def text_encoder_unit(
    encoder: Any,
    folder: str,
    layout: EncoderLayout,
    dtype: torch.dtype,
    quantize: str | None = None,
    prompts: PromptTokens | None = None,
) -> ExportUnit:
    """Return the unit of a CLIP text model, of a T5 encoder, or of a language model with taps.

    A quantised one computes in float32 whatever the type of its weights is. It is verified on
    `prompts`, so that the error is that of real embeddings.
    """
    if quantize:
        dtype = torch.float32
    axes = ("prompts", layout.max_length)
    ids = TensorSpec("token_ids", axes, torch.int64)
    mask = (TensorSpec("text_mask", axes),) if layout.masked else ()
    width = widths(encoder, layout.taps)
    made = {
        "hidden": TensorSpec("hidden", (*axes, width["hidden"])),
        "pooled": TensorSpec("pooled", ("prompts", width["pooled"])),
    }
    outputs = tuple(made[name] for name in layout.outputs)
    network: nn.Module = _TextEncoder(encoder, layout.outputs, dtype)
    if layout.taps:
        check_taps(encoder, layout.taps)
        network = TappedDecoder(encoder, layout.taps, dtype, pads_left=layout.pads_left)
    return ExportUnit(
        network,
        GraphSpec(f"{folder}/model.onnx", (ids, *mask), outputs, dtype, quantize=quantize),
        {"prompts": 2},
        {},
        {},
        vocabulary=encoder.get_input_embeddings().num_embeddings,
        verified_on=prompts.inputs(layout) if prompts else None,
        read=prompts.read(layout) if prompts and layout.masked else None,
    )


def vae_decoder_unit(adapter: Adapter) -> ExportUnit:
    """Return the unit of the VAE's decoder."""
    latent, image = _vae_axes(adapter)
    inputs, outputs = (TensorSpec("latent", latent),), (TensorSpec("image", image),)
    spec = GraphSpec("vae_decoder/model.onnx", inputs, outputs, rewrites_attention=True)
    sizes = {"images": 2, "latent_height": 6, "latent_width": 8}
    # From 64 images on, diffusers copies memory. A maximum keeps torch.export from branching there.
    return ExportUnit(_VaeDecoder(adapter), spec, sizes, {}, {"images": 63})


def vae_encoder_unit(adapter: Adapter) -> ExportUnit:
    """Return the unit of the VAE's encoder. Image sides are multiples of its scale factor."""
    latent, image = _vae_axes(adapter)
    inputs, outputs = (TensorSpec("image", image),), (TensorSpec("latent", latent),)
    spec = GraphSpec("vae_encoder/model.onnx", inputs, outputs, rewrites_attention=True)
    scale = adapter.latent().vae_scale_factor
    sizes = {"images": 2, "image_height": 6 * scale, "image_width": 8 * scale}
    sides = ("image_height", "image_width")
    return ExportUnit(_VaeEncoder(adapter), spec, sizes, dict.fromkeys(sides, scale), {})


def _vae_axes(adapter: Adapter) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    latent = ("images", adapter.latent().channels, "latent_height", "latent_width")
    return latent, ("images", 3, "image_height", "image_width")
