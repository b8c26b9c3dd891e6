"""The state of a transformer's training: weights, their average, optimizer, and checkpoints."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

EMA_DECAY = 0.9995
KEPT = 2  # checkpoints; if the newest one cannot be read, the one before it is


class TrainingState:
    """A model with AdamW, an exponential moving average, a random generator, step and seconds.

    It starts from the newest checkpoint in `folder`, if there is one. Weight decay acts on matrices
    only.
    """

    def __init__(self, model: SD3Transformer2DModel, folder: Path, lr: float) -> None:
        self.model, self.folder = model, folder
        decayed = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
            lr=lr,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.ema = [p.detach().clone() for p in model.parameters()]
        self.generator = torch.Generator().manual_seed(3)
        self.step, self.seconds = 0, 0.0
        self._load()

    def apply(self, loss: torch.Tensor, rate: float) -> None:
        """Take an optimizer step for `loss` at the learning rate `rate`, and move the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        # The average starts with a short memory, or the first random weights would stay in it.
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.model.parameters()], 1.0 - decay)

    def averaged(self) -> SD3Transformer2DModel:
        """Return a plain diffusers transformer on the CPU with the averaged weights."""
        model = SD3Transformer2DModel.from_config(dict(self.model.config))
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), self.ema, strict=True):
                parameter.copy_(value)
        return model.eval()

    def save(self) -> None:
        """Write a checkpoint and remove old ones."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        write_state(self.folder / f"checkpoint-{self.step:08}.pt", state)
        for old in checkpoints(self.folder)[KEPT:]:
            old.unlink()

    def _load(self) -> None:
        for path in checkpoints(self.folder):
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
                print(f"warning: {path} cannot be read ({error})", file=sys.stderr)
                continue
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for average, value in zip(self.ema, state["ema"], strict=True):
                average.copy_(value)
            self.generator.set_state(state["generator"])
            self.step, self.seconds = state["step"], state["seconds"]
            return


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` under a temporary name first, so that a killed run keeps the last file."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.rename(path)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, the newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)
