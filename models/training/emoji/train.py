"""Train emoji-sd3: download and render pictures, autoencoder, text encoders, then the transformer.

Everything is kept in --work, so a run that is started again continues where it stopped. It trains
until it gets SIGTERM or SIGINT, when it saves a checkpoint and ends, or until --steps. The text
encoders and the latents take minutes and are started anew if they were not finished. On a CUDA
device the program computes in bfloat16 as it does on a CPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from models.training import curve, data, flow, pipeline_folder, text, vae
from models.training.state import TrainingState

from . import autoencoder, packages, pictures, watch
from .examples import MAX_LENGTH, VOCABULARY, Batches, Examples, encode_all

LOGS = ("curve.csv", "activations.csv")  # which the model's folder keeps too


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(
        prog="python -m models.training.emoji.train",
        description=__doc__,
        epilog="A trial of a minute: --limit 200 --text-steps 10 --vae-steps 10 --steps 10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("models/emoji-sd3"),
        help="pipeline folder that --export-only writes, and from which training starts if --work "
        "has no newer checkpoint",
    )
    p.add_argument(
        "--work",
        type=Path,
        default=packages.default_cache(),
        help="folder for data, checkpoints, logs and sample sheets (default: %(default)s)",
    )
    p.add_argument("--limit", type=int, help="use only this many training pictures")
    p.add_argument(
        "--steps",
        type=int,
        default=10**9,
        help="steps of the transformer; in the last fifth the learning rate falls to zero",
    )
    p.add_argument("--text-steps", type=int, default=1500, help="steps of the text encoders")
    p.add_argument("--vae-steps", type=int, default=2500, help="steps of the autoencoder")
    p.add_argument("--vae-batch", type=int, default=48)
    p.add_argument("--batch", type=int, default=64)
    # 12 blocks of 192 channels would make the pipeline's float16 weights larger than 30 MB.
    p.add_argument("--width", type=int, default=176, help="channels of the image stream")
    p.add_argument("--head-dim", type=int, default=16, help="channels of an attention head")
    p.add_argument("--blocks", type=int, default=12)
    p.add_argument("--lr", type=float, default=8e-4, help="learning rate of AdamW after warm-up")
    p.add_argument("--warmup", type=int, default=500, help="steps of the linear warm-up")
    p.add_argument("--dropout", type=float, default=0.1, help="share of empty captions, for CFG")
    p.add_argument("--save-minutes", type=float, default=5.0, help="time between checkpoints")
    p.add_argument("--watch-steps", type=int, default=250, help="steps between measurements")
    p.add_argument("--sheet-steps", type=int, default=500, help="steps between sample sheets")
    p.add_argument("--milestone-steps", type=int, default=5000, help="steps between milestones")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer, which takes a minute or two; a step is then 1.25 times as "
        "fast on a CPU",
    )
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--stop-after", choices=("data", "vae", "text", "latents", "all"), default="all")
    p.add_argument(
        "--export-only",
        action="store_true",
        help="only write --out from the averaged weights of the newest checkpoint",
    )
    return p.parse_args(argv)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yield a list to which SIGTERM and SIGINT are added, instead of ending the program."""
    stopping: list[int] = []
    previous = {
        number: signal.signal(number, lambda received, frame: stopping.append(received))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train_autoencoder(examples: Examples, args: argparse.Namespace) -> bool:
    """Train the autoencoder into --work/vae, and draw what it makes of held-out pictures.

    Return False if training was stopped before its end.
    """
    training = autoencoder.Training(
        args.vae_steps, torch.device(args.device), args.work / "autoencoder.pt"
    )
    with stop_signals() as stopping:
        model = autoencoder.train(
            examples.pixels, training, args.vae_batch, args.save_minutes, stopping
        )
    if model is None:
        return False
    held = Examples.of(pictures.load(args.work).of("name"))
    originals = held.pixels(16, torch.Generator().manual_seed(8))
    decoded = vae.decode_rgb(model, vae.encode_latents(model, originals))
    error = (decoded.clamp(-1, 1) - originals).pow(2).mean().item() / 4.0
    print(f"autoencoder: mean squared error {error:.6f} on held-out pictures", flush=True)
    shown = watch.to_images(torch.stack([originals, decoded], 1).flatten(0, 1))
    watch.labelled(shown, ["original", "decoded"] * 16, args.work / "sheets" / "autoencoder.png")
    model.save_pretrained(args.work / "vae")
    return True


def train_text(examples: Examples, args: argparse.Namespace) -> None:
    """Train tokenizers and text encoders into --work/encoders."""
    torch.manual_seed(2)
    corpus = examples.sample_captions(5000)
    tokenizers = text.build_tokenizers(corpus, VOCABULARY, MAX_LENGTH)
    encoders = text.train_encoders(tokenizers, examples.pairs, args.text_steps)
    text.save_encoders(args.work / "encoders", list(tokenizers), encoders)


def prepare(args: argparse.Namespace) -> Batches | None:
    """Run or load the stages before the transformer; None if they are to end earlier."""
    every = pictures.load(args.work)
    split = every.of("train")
    if args.limit:
        split = pictures.Pictures(split.rgba[: args.limit], split.emoji[: args.limit])
    print(f"{len(every.emoji)} pictures, {len(split.emoji)} of them to train on", flush=True)
    if args.stop_after == "data":
        return None
    examples = Examples.of(split)
    vae_dir, encoders_dir = args.work / "vae", args.work / "encoders"
    if not (vae_dir / "done").exists():
        if not train_autoencoder(examples, args):
            return None
        (vae_dir / "done").touch()
    if args.stop_after == "vae":
        return None
    if not (encoders_dir / "done").exists():
        train_text(examples, args)
        (encoders_dir / "done").touch()
    if args.stop_after == "text":
        return None
    latents, device = args.work / "latents.npy", torch.device(args.device)
    if not latents.exists():
        encode_all(examples, AutoencoderKL.from_pretrained(vae_dir).eval(), latents, device)
    if args.stop_after == "latents":
        return None
    return Batches(examples, latents, encoders_dir, device)


def shipped_step(out: Path) -> dict[str, Any]:
    """Return step and seconds of the pipeline in `out`, or of an untrained one."""
    path = out / "training.json"
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {"step": 0, "seconds": 0.0} | facts


class Run(TrainingState):
    """The training state of the transformer that the arguments describe."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(0)
        model = flow.build_transformer(
            args.width,
            args.blocks,
            args.head_dim,
            latent_channels=autoencoder.LATENT_CHANNELS,
        )
        model.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
        super().__init__(model.to(args.device), args.work, args.lr)
        self.forward = torch.compile(self.model) if args.compile else self.model
        self.warmed_from = 0
        if shipped_step(args.out)["step"] > self.step:
            self._start_from(args.out)

    def _start_from(self, out: Path) -> None:
        """Take weights and average from a pipeline folder, which has no optimizer state."""
        loaded = pipeline_folder.load(out).transformer
        self.model.load_state_dict(loaded.state_dict())
        for average, value in zip(self.ema, self.model.parameters(), strict=True):
            average.copy_(value.detach())
        facts = shipped_step(out)
        self.step, self.seconds, self.warmed_from = facts["step"], facts["seconds"], facts["step"]
        self.generator.manual_seed(3 + self.step)
        print(f"continues from {out}, step {self.step}", flush=True)

    def learning_rate(self) -> float:
        """Return the rate: constant after a linear warm-up, and falling to zero in the last fifth.

        The last fifth is that of --steps.
        """
        args = self.args
        warm = (self.step - self.warmed_from + 1) / args.warmup
        left = (args.steps - self.step) / (0.2 * args.steps)
        return args.lr * min(1.0, warm, left)

    def advance(self, batches: Batches) -> torch.Tensor:
        """Take one optimizer step and return the loss."""
        latents, words, pooled = batches.draw(self.args.batch, self.args.dropout, self.generator)
        with torch.autocast(latents.device.type, torch.bfloat16):
            loss = flow.flow_loss(self.forward, latents, words, pooled, self.generator)
        self.apply(loss, self.learning_rate())
        return loss.detach()


class Logs:
    """Everything that a run writes about itself into its folder."""

    def __init__(self, run: Run, batches: Batches) -> None:
        self.run, self.batches, self.args = run, batches, run.args
        self.curve = run.args.work / "curve.csv"
        self.activations = run.args.work / "activations.csv"
        columns = ["step", "loss", "learning_rate", "seconds", "batch"]
        curve.start(self.curve, columns, run.step)
        curve.start(self.activations, watch.COLUMNS, run.step)
        self.losses: list[torch.Tensor] = []

    def after_step(self, loss: torch.Tensor) -> None:
        """Log the mean loss of 20 steps; measure, draw and keep milestones when it is time."""
        run, args = self.run, self.args
        self.losses.append(loss)
        if run.step % 20 == 0:
            mean = torch.stack(self.losses).mean().item()
            row = [run.step, f"{mean:.5f}", f"{run.learning_rate():.3e}", f"{run.seconds:.1f}"]
            row.append(args.batch)
            curve.append(self.curve, [row])
            self.losses.clear()
        if run.step % args.watch_steps == 0:
            model = run.averaged().to(args.device)
            model.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
            rows = watch.activations(model, self.batches)
            watch.log_activations(self.activations, run.step, rows)
        if run.step % args.sheet_steps == 0:
            pipeline = pipeline_folder.assemble(args.work, run.averaged())
            watch.sheet(pipeline, args.work / "sheets" / f"step-{run.step:08}.png")
        if run.step % args.milestone_steps == 0:
            export(run, args.work / "milestones" / f"step-{run.step:08}")


def export(run: Run, out: Path) -> int:
    """Write the pipeline with the averaged weights, its step and logs; return its size in bytes."""
    size = pipeline_folder.write(out, run.args.work, run.averaged())
    facts = {"step": run.step, "seconds": round(run.seconds, 1)}
    (out / "training.json").write_text(json.dumps(facts) + "\n")
    for name in filter(lambda name: (run.args.work / name).exists(), LOGS):
        shutil.copy(run.args.work / name, out / name)
    return size


def train_transformer(run: Run, batches: Batches, stopping: list[int]) -> None:
    """Train until --steps or until `stopping` is not empty; save every few minutes and then."""
    logs = Logs(run, batches)
    saved = last = time.monotonic()
    bar = tqdm(total=run.args.steps, initial=run.step, desc="transformer", mininterval=60.0)
    while run.step < run.args.steps and not stopping:
        loss = run.advance(batches)
        now = time.monotonic()
        run.seconds += now - last
        last = now
        bar.update()
        logs.after_step(loss)
        if now - saved > 60.0 * run.args.save_minutes:
            run.save()
            saved = now
    bar.close()
    run.save()
    print(f"stopped at step {run.step} after {run.seconds / 60:.1f} minutes", flush=True)


def restore_stages(args: argparse.Namespace) -> None:
    """Copy autoencoder, text encoders and logs from --out if training continues from there."""
    if shipped_step(args.out)["step"] == 0 or (args.work / "encoders/done").exists():
        return
    pipeline = pipeline_folder.load(args.out)
    pipeline.vae.save_pretrained(args.work / "vae")
    tokenizers = [pipeline.tokenizer, pipeline.tokenizer_2]
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
    text.save_encoders(args.work / "encoders", tokenizers, encoders)
    for name in filter(lambda name: (args.out / name).exists(), LOGS):
        shutil.copy(args.out / name, args.work / name)
    (args.work / "vae/done").touch()
    (args.work / "encoders/done").touch()


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    try:
        if args.export_only:
            run = Run(args)
            if run.step == 0:
                raise data.DataError(
                    f"{args.work} has no checkpoint: train first, without --export-only"
                )
            size = export(run, args.out)
            print(f"step {run.step}: wrote {args.out} ({size / 1e6:.1f} MB)")
            return 0
        restore_stages(args)
        batches = prepare(args)
        if batches is not None:
            with stop_signals() as stopping:
                train_transformer(Run(args), batches, stopping)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
