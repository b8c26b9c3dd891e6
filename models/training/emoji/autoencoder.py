"""The AutoencoderKL of 64x64 pixels to 16x16x8 latents, trained with a loss that keeps edges."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from models.training import vae

WIDTHS, LATENT_CHANNELS = (32, 64, 64), 8
KL_WEIGHT, GRADIENT_WEIGHT = 3e-4, 1.0
SCALES = 3
# Most steps see crops of half the side, which cost a quarter; the last ones see whole pictures.
CROP, CROPPED_STEPS = 32, 0.8
# Returns n pictures [n, 3, 64, 64] in [-1, 1], drawn with the generator.
DrawPixels = Callable[[int, torch.Generator], torch.Tensor]


def edge_loss(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error of the steps between neighbouring pixels, at three scales.

    A blurred edge has wrong steps on both sides, although few of its pixels are far off.
    """
    error = decoded - images
    total = torch.zeros((), device=error.device)
    for scale in range(SCALES):
        if scale:
            error = functional.avg_pool2d(error, 2)
        total = total + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return total / (2 * SCALES)


def loss_of(
    model: AutoencoderKL, images: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of a batch of images [n, 3, 64, 64], and its parts for the log."""
    with torch.autocast(images.device.type, torch.bfloat16):
        posterior = model.encode(images).latent_dist
        decoded = model.decode(posterior.sample(generator)).sample.float()
    mean, variance = posterior.mean.float(), posterior.var.float()
    kl = 0.5 * (mean**2 + variance - 1.0 - posterior.logvar.float()).mean()
    error = (decoded - images).abs().mean()
    edges = edge_loss(decoded, images)
    parts = {"l1": error.item(), "edges": edges.item(), "kl": kl.item()}
    return error + GRADIENT_WEIGHT * edges + KL_WEIGHT * kl, parts


def train(draw: DrawPixels, steps: int, batch: int, device: torch.device) -> AutoencoderKL:
    """Train for `steps` steps; return the average of the weights, with scaling and shift."""
    torch.manual_seed(1)
    model = vae.build_vae(WIDTHS, LATENT_CHANNELS, size=64)
    model.to(device)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    generator, noise = torch.Generator().manual_seed(2), torch.Generator(device).manual_seed(2)
    for step in (bar := tqdm(range(steps), "autoencoder", mininterval=10.0)):
        images = draw(batch, generator).to(device)
        if step < CROPPED_STEPS * steps:
            top, left = torch.randint(images.shape[2] - CROP + 1, (2,), generator=generator)
            images = images[:, :, top : top + CROP, left : left + CROP]
        loss, parts = loss_of(model, images, noise)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        bar.set_postfix({k: f"{v:.4f}" for k, v in parts.items()}, refresh=False)
    return vae.finish(average.module.cpu(), draw(128, generator))
