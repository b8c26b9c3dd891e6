"""Train the weaker model that autoguidance (arXiv 2406.02507) steers away from.

It is a transformer of a fraction of the shipped one's size. It is trained for minutes on the
shipped model's own latents and prompt embeddings, so that both predict the same thing, and written
to MODEL/weaker.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from tqdm import tqdm

from . import data, flow, pipeline_folder, text, train, vae


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(
        prog="python -m models.training.weaker",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", type=Path, default=Path("models/fashion-sd3"))
    p.add_argument("--data", type=Path, default=data.DEFAULT_DATA)
    p.add_argument("--limit", type=int, help="use only this many training images")
    p.add_argument("--minutes", type=float, default=10.0)
    p.add_argument("--batch", type=int, default=96)
    p.add_argument("--width", type=int, default=64, help="channels of the image stream")
    p.add_argument("--blocks", type=int, default=4)
    p.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of AdamW")
    p.add_argument("--dropout", type=float, default=0.12, help="share of empty captions")
    p.add_argument("--threads", type=int, default=2)
    return p.parse_args(argv)


def cache(args: argparse.Namespace) -> train.Cache:
    """Return latents and prompt embeddings of the shipped model's encoders."""
    pipeline = pipeline_folder.load(args.model)
    split = data.load_split(args.data, "train", args.limit)
    words, pooled = text.encode(
        [pipeline.tokenizer, pipeline.tokenizer_2],
        [pipeline.text_encoder, pipeline.text_encoder_2],
        data.all_captions(),
    )
    return train.Cache(
        vae.encode_latents(pipeline.vae, data.to_pixels(split.images)),
        torch.from_numpy(split.labels),
        torch.from_numpy(data.attributes(split.images, split.labels)),
        words[:, : text.MAX_LENGTH + 1].contiguous(),
        pooled,
    )


def train_weaker(args: argparse.Namespace, examples: train.Cache) -> SD3Transformer2DModel:
    """Train by rectified flow for `args.minutes`, with a cosine learning rate over that time."""
    torch.manual_seed(0)
    model = flow.build_transformer(args.width, args.blocks)
    model.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.99), fused=True)
    generator = torch.Generator().manual_seed(3)
    begin = time.monotonic()
    bar = tqdm(desc="weaker transformer", mininterval=10.0)
    while (done := (time.monotonic() - begin) / (60.0 * args.minutes)) < 1.0:
        warm = min(1.0, (bar.n + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * 0.5 * (1.0 + math.cos(math.pi * done))
        latents, words, pooled = examples.batch(args.batch, args.dropout, generator)
        loss = flow.flow_loss(model, latents, words, pooled, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.update()
        if bar.n % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    return model.eval()


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    try:
        model = train_weaker(args, cache(args))
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    plain = SD3Transformer2DModel.from_config(dict(model.config))
    plain.load_state_dict(model.state_dict())
    plain.half().save_pretrained(args.model / "weaker")
    print(f"wrote {args.model / 'weaker'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
