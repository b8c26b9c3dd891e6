"""Train the classifier of Fashion-MNIST whose accuracy and features measure the model.

It is trained on real images only and is not shipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from . import data

FEATURES = 128


class Classifier(nn.Module):
    """Maps pixels [n, 1, 32, 32] in [-1, 1] to logits [n, 10]; `features` returns [n, FEATURES]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for out in (24, 48, 96):
            for _ in range(2):
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)]
                layers += [nn.ReLU()]
                channels = out
            layers += [nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3))
        self.embed = nn.Linear(96 * 16, FEATURES)
        self.head = nn.Linear(FEATURES, len(data.NAMES))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.embed(self.body(pixels)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixels))


@torch.no_grad()
def describe(model: Classifier, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [n, FEATURES] and predicted classes [n] of `pixels` [n, 1, 32, 32]."""
    features = torch.cat([model.features(chunk) for chunk in pixels.split(500)])
    return features, model.head(features).argmax(1)


def train(folder: Path, epochs: int, batch: int = 128) -> tuple[Classifier, float]:
    """Train on the training split; return the model and its accuracy on the held-out images."""
    split = data.load_split(folder, "train")
    pixels, labels = data.to_pixels(split.images), torch.from_numpy(split.labels)
    torch.manual_seed(7)
    model = Classifier().to(memory_format=torch.channels_last)
    per_epoch = len(pixels) // batch
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * per_epoch)
    bar = tqdm(total=epochs * per_epoch, desc="classifier", mininterval=5.0)
    for _ in range(epochs):
        order = torch.randperm(len(pixels))
        for rows in order[: per_epoch * batch].split(batch):
            images = pixels[rows].contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(images), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()
    model.eval()
    held = data.load_split(folder, "t10k")
    _, predicted = describe(model, data.to_pixels(held.images))
    return model, (predicted == torch.from_numpy(held.labels)).float().mean().item()


def load(work: Path) -> tuple[Classifier, float]:
    """Load the classifier that this program wrote to `work`, and its test accuracy."""
    path = work / "classifier.pt"
    if not path.exists():
        raise data.DataError(f"{path} does not exist: run python -m models.training.classifier")
    state = torch.load(path, weights_only=True)
    model = Classifier()
    model.load_state_dict(state["model"])
    return model.eval(), state["accuracy"]


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.classifier", description=__doc__)
    p.add_argument("--data", type=Path, default=data.DEFAULT_DATA)
    p.add_argument(
        "--work", type=Path, default=Path("build/training"), help="folder to write it to"
    )
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        model, accuracy = train(args.data, args.epochs)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    args.work.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "accuracy": accuracy}, args.work / "classifier.pt")
    print(f"accuracy on the held-out images: {accuracy:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
