"""Train the judge of emoji-sd3, a classifier of names, and write it in ONNX for `intaglio probe`.

It is trained on the real pictures that the model is trained on. Its accuracy is measured on the
held-out pairs: pictures in a style in which neither of them has seen the name. MODEL/judge then
holds the network, 200 prompts, and its features of the held-out pictures on white, of which there
is one for each name and style.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from models.training import data
from models.training.judge import write_network

from . import captions, packages, pictures
from .examples import Examples
from .pictures import Emoji

FEATURES, PROMPTS = 128, 200


class Classifier(nn.Module):
    """Maps pictures [n, 3, 64, 64] in [-1, 1] to features [n, FEATURES] and logits [n, names]."""

    def __init__(self, names: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = ((3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        for channels, out, stride in sizes:
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)]
            layers += [nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3))
        self.embed = nn.Linear(128 * 16, FEATURES)
        self.head = nn.Linear(FEATURES, names)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = functional.relu(self.embed(self.body(pixels)))
        return features, self.head(features)


class Judge(nn.Module):
    """The classifier for pictures [N, 64, 64, 3] from 0 to 1, as the probe passes them."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, logits = self.network(images.permute(0, 3, 1, 2) * 2 - 1)
        return features, logits


def names_of(emoji: list[Emoji]) -> list[str]:
    """Return the names, which are the judge's classes, in order."""
    return sorted({one.name for one in emoji})


def train(examples: Examples, names: list[str], steps: int, batch: int = 128) -> Classifier:
    """Train on composed pictures with a little noise, which the model's pictures have too."""
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(7)
    place = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([place[one.name] for one in examples.pictures.emoji])
    network = Classifier(len(names)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in (bar := tqdm(range(steps), "judge", mininterval=10.0)):
        rows, which = examples.choose(batch, generator)
        pixels = examples.compose(rows, which)
        pixels = pixels + 0.05 * torch.randn(pixels.shape, generator=generator)
        _, logits = network(pixels.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return network.eval()


@torch.no_grad()
def describe(network: Classifier, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [n, FEATURES] and predicted classes [n] of `pixels` [n, 3, 64, 64]."""
    parts = [network(chunk) for chunk in pixels.split(500)]
    return torch.cat([f for f, _ in parts]), torch.cat([logits.argmax(1) for _, logits in parts])


def once(emoji: list[Emoji]) -> list[int]:
    """Return the indices of one emoji for each name and style, in random order.

    Otherwise those in six skin tones would count six times.
    """
    first: dict[tuple[str, str], int] = {}
    for i in np.random.default_rng(12).permutation(len(emoji)):
        first.setdefault((emoji[i].name, emoji[i].style), int(i))
    return list(first.values())


def on_white(examples: Examples, variant: int = 0) -> torch.Tensor:
    """Return every picture on white, [n, 3, 64, 64] in [-1, 1]: as drawn, or in variant 1."""
    rows = np.arange(len(examples.pictures.emoji))
    return examples.compose(rows, np.full_like(rows, variant))


def prompt(emoji: Emoji) -> str:
    """Return the prompt that asks for an emoji on white in its style."""
    words = [captions.with_article(emoji.name), *filter(None, [emoji.tone]), emoji.style]
    return ", ".join(words)


def prompts(emoji: list[Emoji], names: list[str], n: int) -> list[tuple[str, int]]:
    """Return n prompts for different names, with their classes, the styles in turn."""
    rng = np.random.default_rng(11)
    chosen: dict[str, tuple[str, int]] = {}
    order = rng.permutation(len(emoji))
    while len(chosen) < n:
        style = pictures.STYLES[len(chosen) % len(pictures.STYLES)]
        left = (emoji[i] for i in order if emoji[i].style == style and emoji[i].name not in chosen)
        one = next(left, None)
        if one is None:
            break
        chosen[one.name] = (prompt(one), names.index(one.name))
    return list(chosen.values())


def run(args: argparse.Namespace) -> float:
    """Train, measure and write; return the accuracy on the held-out pairs."""
    every = pictures.load(args.work)
    examples = Examples.of(every.of("train"))
    names = names_of(examples.pictures.emoji)
    network = train(examples, names, args.steps)
    pairs, unseen = (Examples.of(every.of(split)) for split in ("pair", "name"))
    features, predicted = describe(network, on_white(pairs))
    counted = once(pairs.pictures.emoji)
    known = [i for i in counted if pairs.pictures.emoji[i].name in names]
    right = [names[predicted[i]] == pairs.pictures.emoji[i].name for i in known]
    accuracy = sum(right) / len(right)
    others = describe(network, on_white(unseen))[0]
    reference = torch.cat([features[counted], others[once(unseen.pictures.emoji)]])
    out = args.model / "judge"
    out.mkdir(parents=True, exist_ok=True)
    write_network(Judge(network), pictures.SIZE, out / "judge.onnx")
    np.savez_compressed(out / "reference.npz", features=reference.half().numpy())
    about = {
        "classes": names,
        "accuracy": round(accuracy, 4),
        "data": f"trained on the {len(examples.pictures.emoji)} training pictures of ATTRIBUTION.md"
        f" for {args.steps} steps; the reference is of the {len(reference)} held-out ones",
        "license": "Apache-2.0",
        "prompts": prompts(examples.pictures.emoji, names, PROMPTS),
    }
    (out / "judge.json").write_text(json.dumps(about, indent=1) + "\n")
    return accuracy


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.emoji.judge", description=__doc__)
    p.add_argument("--model", type=Path, default=Path("models/emoji-sd3"))
    p.add_argument("--work", type=Path, default=packages.default_cache(), help="folder of the data")
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        accuracy = run(args)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(f"accuracy on the held-out pairs: {accuracy:.3f}; wrote {args.model / 'judge'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
