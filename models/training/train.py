"""Train the shipped model: tokenizers and text encoders, autoencoder, then the transformer.

Each stage is kept in --work, so a run that is started again continues where it stopped. On two CPU
cores shared with other work the shipped model took one, twelve and sixty-one minutes
(--minutes 61).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from . import curve, data, flow, pipeline_folder, text, vae
from .state import TrainingState


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(
        prog="python -m models.training.train",
        description=__doc__,
        epilog="A trial of a minute: --limit 2000 --text-steps 20 --vae-steps 50 --steps 20",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--out", type=Path, default=Path("models/fashion-sd3"), help="pipeline folder to write"
    )
    p.add_argument(
        "--work", type=Path, default=Path("build/training"), help="checkpoints, curve.csv, caches"
    )
    p.add_argument(
        "--data", type=Path, default=data.DEFAULT_DATA, help="folder of the four IDX .gz files"
    )
    p.add_argument("--limit", type=int, help="use only this many training images")
    p.add_argument("--steps", type=int, default=12000, help="steps of the transformer")
    p.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="stop training the transformer after this many minutes; the learning rate falls with "
        "the steps or the minutes, whichever is further along",
    )
    p.add_argument("--text-steps", type=int, default=400, help="steps of the text encoders")
    p.add_argument("--vae-steps", type=int, default=2500, help="steps of the autoencoder")
    p.add_argument("--batch", type=int, default=96)
    p.add_argument("--width", type=int, default=160, help="channels of the image stream")
    p.add_argument("--blocks", type=int, default=8)
    p.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of AdamW")
    p.add_argument("--dropout", type=float, default=0.12, help="share of empty captions, for CFG")
    p.add_argument("--save-minutes", type=float, default=4.0, help="time between checkpoints")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--stop-after", choices=("text", "vae", "cache", "all"), default="all")
    p.add_argument(
        "--export-only",
        action="store_true",
        help="only write --out from the averaged weights of the newest checkpoint",
    )
    return p.parse_args(argv)


@dataclass
class Cache:
    """The training data: latents [n, 4, 16, 16], labels, attributes and caption embeddings."""

    latents: torch.Tensor
    labels: torch.Tensor
    attrs: torch.Tensor
    words: torch.Tensor
    pooled: torch.Tensor

    def batch(
        self, size: int, dropout: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw latents [size, 4, 16, 16], words [size, MAX_LENGTH + 1, JOINT_DIM] and pooled."""
        rows = torch.randint(len(self.latents), (size,), generator=generator)
        index = data.caption_index(self.labels[rows], self.attrs[rows], dropout, generator)
        return self.latents[rows], self.words[index], self.pooled[index]


def prepare(args: argparse.Namespace) -> Cache | None:
    """Run or load the stages before the transformer; None if `--stop-after` ends earlier."""
    split = data.load_split(args.data, "train", args.limit)
    pixels = data.to_pixels(split.images)
    labels = torch.from_numpy(split.labels)
    attrs = torch.from_numpy(data.attributes(split.images, split.labels))
    encoders_dir, vae_dir = args.work / "encoders", args.work / "vae"
    if not (encoders_dir / "done").exists():
        tokenizers = text.build_tokenizers(data.all_captions())
        draw = data.pairs(pixels, labels, attrs)
        encoders = text.train_encoders(tokenizers, draw, args.text_steps)
        text.save_encoders(encoders_dir, tokenizers, encoders)
        (encoders_dir / "done").touch()
    if args.stop_after == "text":
        return None
    if not (vae_dir / "done").exists():
        vae.train_vae(pixels, args.vae_steps).save_pretrained(vae_dir)
        (vae_dir / "done").touch()
    if args.stop_after == "vae":
        return None
    model = AutoencoderKL.from_pretrained(vae_dir).eval()
    latents_file = args.work / "latents.pt"
    if not latents_file.exists():
        torch.save(vae.encode_latents(model, pixels), latents_file)
    latents = torch.load(latents_file, mmap=True)
    words, pooled = text.encode(*text.load_encoders(encoders_dir), data.all_captions())
    # One zero row stands for all of them (flow.RepeatedRowAttention).
    words = words[:, : text.MAX_LENGTH + 1].contiguous()
    return Cache(latents, labels, attrs, words, pooled)


class Run(TrainingState):
    """The training state of the transformer that the arguments describe."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(0)
        model = flow.build_transformer(args.width, args.blocks)
        model.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
        super().__init__(model, args.work, args.lr)

    def learning_rate(self) -> float:
        """Return the rate after a linear warm-up and a cosine over steps or minutes."""
        done = max(self.step / self.args.steps, self.seconds / 60.0 / self.args.minutes)
        warm = min(1.0, (self.step + 1) / min(300, 0.1 * self.args.steps + 1))
        return (
            self.args.lr * warm * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))
        )

    def advance(self, cache: Cache) -> float:
        """Take one optimizer step and return the loss."""
        latents, words, pooled = cache.batch(self.args.batch, self.args.dropout, self.generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow.flow_loss(self.model, latents, words, pooled, self.generator)
        self.apply(loss, self.learning_rate())
        return loss.item()


def train_transformer(run: Run, cache: Cache) -> None:
    """Train until --steps or --minutes, and append the mean loss of every 20 steps to curve.csv."""
    args = run.args
    log = args.work / "curve.csv"
    curve.start(log, ["step", "loss", "learning_rate", "seconds"], run.step)
    every = max(1, min(20, args.steps // 5))
    losses: list[float] = []
    saved = last = time.monotonic()
    bar = tqdm(total=args.steps, initial=run.step, desc="transformer", mininterval=5.0)
    while run.step < args.steps and run.seconds < 60.0 * args.minutes:
        losses.append(run.advance(cache))
        now = time.monotonic()
        run.seconds += now - last
        last = now
        bar.update()
        if run.step % every == 0:
            mean = sum(losses) / len(losses)
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            row = [run.step, f"{mean:.5f}", f"{run.learning_rate():.3e}", f"{run.seconds:.1f}"]
            curve.append(log, [row])
            losses.clear()
        if now - saved > 60.0 * args.save_minutes:
            run.save()
            saved = now
    bar.close()
    run.save()


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    try:
        if not args.export_only:
            cache = prepare(args)
            if cache is None or args.stop_after == "cache":
                return 0
            train_transformer(Run(args), cache)
        run = Run(args)
        if run.step == 0:
            print(
                f"error: {args.work} has no checkpoint: train first, without --export-only",
                file=sys.stderr,
            )
            return 3
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    size = pipeline_folder.write(args.out, args.work, run.averaged())
    curve.draw(args.work / "curve.csv", args.out / "curve.png")
    print(
        f"step {run.step}, {run.seconds / 60:.1f} minutes: wrote {args.out} ({size / 1e6:.1f} MB)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
