"""Families that sample packed latents of `AutoencoderKLQwenImage`."""

from __future__ import annotations

import torch

from intaglio_export.adapters.base import LARGEST_SIDE, Adapter, LatentLayout


class QwenVaeAdapter(Adapter):
    """An adapter of such a family. The VAE draws films, of which an image is the only frame."""

    def latent(self) -> LatentLayout:
        return LatentLayout(
            channels=self.transformer.config.in_channels // self.patch_size**2,
            vae_scale_factor=self.pipeline.vae_scale_factor,
            scaling_factor=1.0,  # the graphs of the VAE scale each channel
            shift_factor=0.0,
            max_height=LARGEST_SIDE,
            max_width=LARGEST_SIDE,
            packed=True,
        )

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        image: torch.Tensor = self.pipeline.vae.decode(
            (latents * std + mean).unsqueeze(2), return_dict=False
        )[0]
        return image.squeeze(2)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        posterior = self.pipeline.vae.encode(image.unsqueeze(2), return_dict=False)[0]
        latents: torch.Tensor = (posterior.mean.squeeze(2) - mean) / std
        return latents

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and standard deviation of each latent channel, [C, 1, 1]."""
        config = self.pipeline.vae.config
        return tuple(
            torch.tensor(values).view(-1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )  # type: ignore[return-value]
