"""Train the judge that `intaglio probe` measures pictures of emoji-sd3 with, on real pictures.

MODEL/judge then holds it in ONNX, its prompts, and its features of held-out pictures. A prompt asks
for each held-out emoji: one whose name is held out is asked for with its kind ("a goose, birds,
flat"), since no caption names it, and one whose name is trained in another style by its name.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from models.training import data, judge

from . import captions, compose, packages, pictures
from .examples import Examples
from .pictures import Emoji, Pictures

FEATURES = 128
WIDTHS = (24, 48, 96, 128)


class Network(nn.Module):
    """Maps pictures [N, 64, 64, 3] from 0 to 1 to features [N, FEATURES] and logits [N, kinds]."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in WIDTHS:
            for _ in range(2):
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)]
                layers += [nn.ReLU()]
                channels = out
            layers += [nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3))
        self.embed = nn.Linear(channels * (pictures.SIZE >> len(WIDTHS)) ** 2, FEATURES)
        self.head = nn.Linear(FEATURES, kinds)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = functional.relu(self.embed(self.body(images.permute(0, 3, 1, 2) * 2 - 1)))
        return features, self.head(features)


def train(examples: Examples, kinds: list[str], steps: int, batch: int = 96) -> Network:
    """Train a network to tell the kind of the training pictures, on all backgrounds."""
    torch.manual_seed(7)
    network = Network(len(kinds))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(9)
    labels = _labels(examples.pictures.emoji, kinds)
    for _ in tqdm(range(steps), "judge", mininterval=10.0):
        rows, which = examples.choose(batch, generator)
        images = _images(examples.pictures, examples.variants, rows, which)
        _, logits = network(images)
        loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _labels(emoji: list[Emoji], kinds: list[str]) -> torch.Tensor:
    return torch.tensor([kinds.index(one.kind) for one in emoji])


def _images(
    of: Pictures, variants: compose.Variants, rows: np.ndarray, which: np.ndarray
) -> torch.Tensor:
    pixels = torch.from_numpy(compose.compose(of, variants, rows, which))
    return (pixels / 2 + 0.5).permute(0, 2, 3, 1)


def held_out(every: Pictures) -> Pictures:
    """Return the held-out pictures, one of each name and style; skin tones take turns."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, one in enumerate(every.emoji):
        if one.split != "train":
            found.setdefault((one.style, one.name), []).append(i)
    rows = [same[turn % len(same)] for turn, same in enumerate(found.values())]
    return Pictures(every.rgba[rows], [every.emoji[i] for i in rows])


def prompt(emoji: Emoji) -> str:
    """Return the prompt that asks for a held-out picture on white."""
    form = "name and kind" if emoji.split == "name" else "name"
    words = [captions.head(emoji, (), form), emoji.tone, emoji.style]
    return ", ".join(word for word in words if word)


@torch.no_grad()
def describe(network: Network, held: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Return features [2 n, FEATURES] and predicted kinds [n] of the pictures on white.

    The second half of the features is of the pictures' shifted and mirrored variants.
    """
    rows, variants = np.arange(len(held.emoji)), compose.plan(held)
    found = [network(_images(held, variants, rows, np.full(len(rows), v))) for v in (0, 1)]
    return torch.cat([features for features, _ in found]).numpy(), found[0][1].argmax(1).numpy()


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.emoji.judge", description=__doc__)
    p.add_argument("--model", type=Path, default=Path("models/emoji-sd3"), help="pipeline folder")
    p.add_argument(
        "--work", type=Path, default=packages.default_cache(),
        help="folder of the pictures (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        every = pictures.load(args.work)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    kinds = sorted({one.kind for one in every.emoji})
    network = train(Examples.of(every.of("train")), kinds, args.steps)
    held = held_out(every)
    features, predicted = describe(network, held)
    right = predicted == _labels(held.emoji, kinds).numpy()
    by_split = {
        split: float(right[[one.split == split for one in held.emoji]].mean())
        for split in ("name", "pair")
    }
    prompts = [[prompt(one), kinds.index(one.kind)] for one in held.emoji]
    random.Random(0).shuffle(prompts)  # a run of a few images then has all groups and styles
    about = {
        "classes": kinds,
        "accuracy": round(float(right.mean()), 4),
        "accuracy_of_held_out_names": round(by_split["name"], 4),
        "accuracy_of_held_out_pairs": round(by_split["pair"], 4),
        "data": "emoji of Noto (Apache-2.0) and Fluent (MIT): trained on the training pictures;"
        " the reference is of held-out ones on white",
        "license": "Apache-2.0",
        "prompts": prompts,
    }
    judge.write(args.model / "judge", network, pictures.SIZE, features, about)
    print(f"kinds told rightly on held-out pictures: {right.mean():.3f} ({by_split})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
