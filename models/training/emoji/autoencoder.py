"""The AutoencoderKL of 64x64 pixels to 16x16x8 latents, trained with a loss that keeps edges."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models.training import vae
from models.training.state import write_state

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
        noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()
    mean, variance = posterior.mean.float(), posterior.var.float()
    kl = 0.5 * (mean**2 + variance - 1.0 - posterior.logvar.float()).mean()
    error = (decoded - images).abs().mean()
    edges = edge_loss(decoded, images)
    parts = {"l1": error.item(), "edges": edges.item(), "kl": kl.item()}
    return error + GRADIENT_WEIGHT * edges + KL_WEIGHT * kl, parts


class Training:
    """A training run of the autoencoder, which continues from the file at `path` if there is one.

    `average` holds the average of the weights, which is what is used afterwards.
    """

    def __init__(self, steps: int, device: torch.device, path: Path) -> None:
        torch.manual_seed(1)
        self.steps, self.device, self.path, self.step = steps, device, path, 0
        # With this layout a step takes a quarter of the time on a CPU.
        self.model = vae.build_vae(WIDTHS, LATENT_CHANNELS, size=64).to(
            device, memory_format=torch.channels_last
        )
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), 2e-3, weight_decay=0.0, fused=True
        )
        self.schedule = OneCycleLR(self.optimizer, 2e-3, total_steps=steps + 1)
        self.generator = torch.Generator().manual_seed(2)
        self.parts = (self.model, self.average, self.optimizer, self.schedule)
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            for part, values in zip(self.parts, state["parts"], strict=True):
                part.load_state_dict(values)
            self.generator.set_state(state["generator"])
            self.step = state["step"]

    def save(self) -> None:
        """Write the state to `path`."""
        state = {
            "parts": [part.state_dict() for part in self.parts],
            "generator": self.generator.get_state(),
            "step": self.step,
        }
        write_state(self.path, state)

    def advance(self, draw: DrawPixels, batch: int) -> dict[str, float]:
        """Take one step, on crops at first and later on whole pictures; return the loss's parts."""
        images = draw(batch, self.generator).to(self.device)
        if self.step < CROPPED_STEPS * self.steps:
            top, left = torch.randint(images.shape[2] - CROP + 1, (2,), generator=self.generator)
            images = images[:, :, top : top + CROP, left : left + CROP]
        images = images.contiguous(memory_format=torch.channels_last)
        loss, parts = loss_of(self.model, images, self.generator)
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.model)
        self.step += 1
        return parts


def train(
    draw: DrawPixels, training: Training, batch: int, save_minutes: float, stopping: list[int]
) -> AutoencoderKL | None:
    """Train until the last step, and return the autoencoder with its scaling and shift.

    If `stopping` is no longer empty, save and return None.
    """
    bar = tqdm(total=training.steps, initial=training.step, desc="autoencoder", mininterval=30.0)
    saved = time.monotonic()
    while training.step < training.steps:
        parts = training.advance(draw, batch)
        bar.set_postfix({k: f"{v:.4f}" for k, v in parts.items()}, refresh=False)
        bar.update()
        if stopping or time.monotonic() - saved > 60.0 * save_minutes:
            training.save()
            saved = time.monotonic()
        if stopping:
            return None
    bar.close()
    return vae.finish(training.average.module.cpu(), draw(128, training.generator))
