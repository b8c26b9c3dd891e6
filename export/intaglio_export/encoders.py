"""Graphs beside the transformer: CLIP text encoders and the VAE's two halves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from intaglio_export.graphs import ExportUnit, GraphSpec, TensorSpec


class _ClipEncoder(nn.Module):
    """token_ids [n, L] int64 -> penultimate hidden states [n, L, D] and projection [n, P]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.encoder(tensors[0], output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds


class _VaeDecoder(nn.Module):
    """latent [n, C, h, w], scaling undone -> image [n, 3, H, W] in [-1, 1] (not clamped)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.vae.decode(tensors[0], return_dict=False)[0]
        return image


class _VaeEncoder(nn.Module):
    """image [n, 3, H, W] in [-1, 1] -> mean of the latent [n, C, h, w], not scaled."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self.vae.encode(tensors[0], return_dict=False)[0].mean
        return mean


def clip_encoder_unit(encoder: Any, folder: str, length: int) -> ExportUnit:
    """The graph of a `CLIPTextModelWithProjection` at `length` tokens."""
    config = encoder.config
    spec = GraphSpec(
        f"{folder}/model.onnx",
        (TensorSpec("token_ids", ("prompts", length), torch.int64),),
        (
            TensorSpec("hidden", ("prompts", length, config.hidden_size)),
            TensorSpec("pooled", ("prompts", config.projection_dim)),
        ),
    )
    sizes = {"prompts": 2}
    return ExportUnit(_ClipEncoder(encoder), spec, sizes, {}, {}, vocabulary=config.vocab_size)


def vae_decoder_unit(vae: Any) -> ExportUnit:
    """The graph of an `AutoencoderKL`'s decoder."""
    latent = ("images", vae.config.latent_channels, "latent_height", "latent_width")
    image = ("images", vae.config.out_channels, "image_height", "image_width")
    spec = GraphSpec(
        "vae_decoder/model.onnx", (TensorSpec("latent", latent),), (TensorSpec("image", image),)
    )
    sizes = {"images": 2, "latent_height": 6, "latent_width": 8}
    # diffusers only copies memory at 64 images and more, but torch.export must be told not to ask.
    return ExportUnit(_VaeDecoder(vae), spec, sizes, {}, {"images": 63})


def vae_encoder_unit(vae: Any, scale: int) -> ExportUnit:
    """The graph of an `AutoencoderKL`'s encoder; image sides are multiples of `scale`."""
    image = ("images", vae.config.in_channels, "image_height", "image_width")
    latent = ("images", vae.config.latent_channels, "latent_height", "latent_width")
    spec = GraphSpec(
        "vae_encoder/model.onnx", (TensorSpec("image", image),), (TensorSpec("latent", latent),)
    )
    sizes = {"images": 2, "image_height": 6 * scale, "image_width": 8 * scale}
    sides = ("image_height", "image_width")
    return ExportUnit(_VaeEncoder(vae), spec, sizes, dict.fromkeys(sides, scale), {})
