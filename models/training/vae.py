"""Small AutoencoderKLs, and the fashion model's, which encodes 32x32 grey pixels to 16x16x4."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

KL_WEIGHT = 5e-4


def build_vae(
    widths: tuple[int, ...] = (32, 64), latent_channels: int = 4, size: int = 32
) -> AutoencoderKL:
    """Build an autoencoder of `size` x `size` RGB pixels, halved between neighbouring widths."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=size,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def train_vae(
    pixels: torch.Tensor, steps: int, batch: int = 64, autocast: bool = True
) -> AutoencoderKL:
    """Train on `pixels` [n, 1, 32, 32], and write the measured scaling and shift to the config."""
    vae = build_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    generator = torch.Generator().manual_seed(2)
    for _ in (bar := tqdm(range(steps), "autoencoder")):
        rows = torch.randint(len(pixels), (batch,), generator=generator)
        images = pixels[rows].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).float().mean()
        error = (decoded.float() - images).pow(2).mean()
        loss = error + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(mse=f"{error.item():.5f}", kl=f"{kl.item():.2f}")
    return finish(vae, pixels[:5000])


def finish(vae: AutoencoderKL, pixels: torch.Tensor) -> AutoencoderKL:
    """Freeze a trained autoencoder, and write scaling and shift of `pixels` to its config."""
    vae.eval().requires_grad_(False)
    sample = encode_latents(vae, pixels, normalised=False)
    vae.register_to_config(
        scaling_factor=round(1.0 / sample.std().item(), 4),
        shift_factor=round(sample.mean().item(), 4),
    )
    return vae


@torch.no_grad()
def encode_latents(
    vae: AutoencoderKL, pixels: torch.Tensor, batch: int = 250, normalised: bool = True
) -> torch.Tensor:
    """Encode grey or RGB `pixels` [n, 1 or 3, H, W] to latents, shifted and scaled by default."""
    parts = []
    for chunk in tqdm(pixels.split(batch), "latents", leave=False, disable=len(pixels) <= batch):
        parts.append(vae.encode(chunk.expand(-1, 3, -1, -1)).latent_dist.mean.float())
    latents = torch.cat(parts)
    if normalised:
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return latents.contiguous()


@torch.no_grad()
def decode_rgb(vae: AutoencoderKL, latents: torch.Tensor, batch: int = 250) -> torch.Tensor:
    """Decode the scheduler's latents [n, C, h, w] to RGB pixels, which may leave [-1, 1]."""
    parts = []
    for chunk in latents.float().split(batch):
        chunk = chunk / vae.config.scaling_factor + vae.config.shift_factor
        parts.append(vae.decode(chunk).sample.float())
    return torch.cat(parts)


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decode the scheduler's latents [n, 4, 16, 16] to grey pixels [n, 1, 32, 32] in [-1, 1]."""
    return decode_rgb(vae, latents).mean(1, keepdim=True).clamp(-1, 1)
