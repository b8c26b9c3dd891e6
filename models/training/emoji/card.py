"""Write the model card of emoji-sd3 from what training, the judge and the probe wrote.

Besides, it draws pictures: a sheet for the card, and as many as it takes to measure how near they
are to training pictures. If a file is missing, the card is not written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from models.training import curve, pipeline_folder, text
from models.training.card import interval, table
from models.training.evaluate import nearest

from . import compose, packages, pictures, watch
from .judge import held_out, prompt
from .pictures import Pictures

Json = dict[str, Any]
ARMS = {
    "none": "no guidance",
    "cfg": "CFG",
    "dg": "DG without CFG",
    "cfg+dg": "CFG and DG",
    "cfg+random": "CFG and random channels",
    "cfg+random as far 1": "CFG and random channels moved as far",
    "cfg+skip-layer": "CFG and a skipped block",
    "cfg+blurred": "CFG and a blurred negative",
}
MEASURES = ("frechet", "accuracy", "high_frequency_energy")


def arms_section(part: Json) -> str:
    """Return measures of each arm, and their differences from CFG alone on the same seeds."""
    rows = []
    for key, name in ARMS.items():
        if key not in part["arms"]:
            continue
        arm, gaps = part["arms"][key], part["minus_cfg"].get(key)
        cells = [f"{arm['frechet']:.2f}", f"{arm['accuracy']:.3f}"]
        cells += [interval(gaps[m]) if gaps else "" for m in MEASURES]
        rows.append([name, arm["images"], *cells])
    head = ["setting", "images", "Fréchet distance", "class accuracy"]
    head += [f"{name}, minus CFG" for name in ("Fréchet", "accuracy", "high frequencies")]
    return table(head, rows)


def neighbours_section(drawn: np.ndarray, every: Pictures) -> str:
    """Return distances to training pictures on white, of `drawn` [N, 64, 64, 3] from 0 to 1 and of
    the held-out pictures."""
    training, held = (_on_white(one) for one in (every.of("train"), held_out(every)))
    ours = torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1
    rows = []
    for name, of in (("drawn", ours), ("held-out", held)):
        found = nearest(of, training)
        rows.append([name, f"{found.median():.3f}", f"{found.quantile(0.05):.3f}", len(of)])
    return table(["pictures", "median", "5 % quantile", "how many"], rows)


def _on_white(of: Pictures) -> torch.Tensor:
    """Return pictures as [N, 3, 64, 64] in [-1, 1]."""
    rows = np.arange(len(of.emoji))
    first = np.zeros(len(rows), np.int64)
    plain = compose.Variants(
        first[:, None], first[:, None].astype(bool), np.zeros((len(rows), 1, 2), np.int64)
    )
    return torch.from_numpy(compose.compose(of, plain, rows, first))


def draw_held_out(pipeline: StableDiffusion3Pipeline, every: Pictures, n: int) -> np.ndarray:
    """Draw the prompts of n held-out pictures as [n, 64, 64, 3] from 0 to 1."""
    asked = [prompt(one) for one in held_out(every).emoji][:n]
    parts = [
        pipeline(
            asked[start : start + 32],
            height=pictures.SIZE,
            width=pictures.SIZE,
            num_inference_steps=20,
            guidance_scale=4.0,
            max_sequence_length=text.MAX_SEQUENCE_LENGTH,
            generator=torch.Generator().manual_seed(start),
            output_type="np",
        ).images
        for start in range(0, len(asked), 32)
    ]
    return np.concatenate(parts)


def ratios(path: Path) -> dict[int, np.ndarray]:
    """Return the ratio of the top channel by training step, each [sigmas, blocks]."""
    found: dict[int, dict[tuple[float, int], float]] = {}
    columns = curve.read(path)
    for step, sigma, block, ratio in zip(
        *(columns[name] for name in ("step", "sigma", "block", "ratio")), strict=True
    ):
        found.setdefault(int(step), {})[sigma, int(block)] = ratio
    blocks = 1 + int(max(columns["block"]))
    return {
        step: np.array([[at[sigma, block] for block in range(blocks)] for sigma in watch.SIGMAS])
        for step, at in found.items()
    }


def draw_emergence(by_step: dict[int, np.ndarray], target: Path) -> None:
    """Draw the mean over sigmas of the largest ratio after every third block, over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = sorted(by_step)
    values = np.stack([by_step[step].mean(0) for step in steps])
    figure, axes = pyplot.subplots(figsize=(5.0, 2.8), dpi=90)
    blocks = sorted({*range(2, values.shape[1], 3), values.shape[1] - 1})
    for block in blocks:
        axes.plot(steps, values[:, block], label=f"block {block}")
    axes.axhline(10, color="0.5", linewidth=0.8, linestyle="--")
    axes.set_xlabel("training step")
    axes.set_ylabel("top channel / median channel")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)


def emergence(by_step: dict[int, np.ndarray]) -> str:
    """Return a table of the ratio by block at several training steps, as means over sigmas."""
    steps = sorted(by_step)
    shown = sorted({steps[round(i * (len(steps) - 1) / 5)] for i in range(6)})
    blocks = by_step[steps[0]].shape[1]
    rows = [[b, *(f"{by_step[step].mean(0)[b]:.1f}" for step in shown)] for b in range(blocks)]
    return table(["block", *(f"step {step:,}" for step in shown)], rows)


def facts(model: Path, work: Path, every: Pictures, judge: Json) -> dict[str, str]:
    """Return what the template says of the model, its data and its training."""
    pipeline = pipeline_folder.load(model)
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    parts = {
        "transformer": (pipeline.transformer,),
        "text encoders": encoders,
        "autoencoder": (pipeline.vae,),
    }
    counts = {
        k: sum(p.numel() for m in group for p in m.parameters()) for k, group in parts.items()
    }
    config, training = (
        pipeline.transformer.config,
        json.loads((model / "training.json").read_text()),
    )
    size = sum(f.stat().st_size for f in model.rglob("*.safetensors"))
    splits = [one.split for one in every.emoji]
    values: Json = {
        "parameters": ", ".join(f"{k} {v / 1e6:.2f} million" for k, v in counts.items()),
        "size": f"{size / 1e6:.1f}",
        "blocks": config.num_layers,
        "width": config.num_attention_heads * config.attention_head_dim,
        "heads": config.num_attention_heads,
        "patch": config.patch_size,
        "vocabulary": len(pipeline.tokenizer),
        "latent_channels": pipeline.vae.config.latent_channels,
        "pictures": f"{len(every.emoji):,}",
        "names": f"{len({one.name for one in every.emoji}):,}",
        "held_names": splits.count("name"),
        "held_pairs": splits.count("pair"),
        "packages": "\n".join(
            f"| [{p.name}]({p.source}) | {p.version} | {p.license} | {p.author} |"
            for p in packages.PACKAGES
        ),
        "batch": 64,
        "steps": f"{training['step']:,}",
        "hours": f"{training['seconds'] / 3600:.1f}",
        "kinds": len(judge["classes"]),
        "judge_names": f"{judge['accuracy_of_held_out_names']:.0%}",
        "judge_pairs": f"{judge['accuracy_of_held_out_pairs']:.0%}",
    }
    return {name: str(value) for name, value in values.items()}


def claims(report: Json, part: str, count: int | None = None) -> str:
    """Return the sentences of a part of the probe's report as a list."""
    return "\n".join(f"- {claim}" for claim in report[part]["claims"][:count])


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.emoji.card", description=__doc__)
    p.add_argument("--model", type=Path, default=Path("models/emoji-sd3"))
    p.add_argument("--work", type=Path, default=packages.default_cache())
    p.add_argument("--probe", type=Path, default=Path("build/emoji-report"), help="report folder")
    p.add_argument("--images", type=int, default=320, help="pictures for nearest neighbours")
    args = p.parse_args(argv)
    try:
        report = json.loads((args.probe / "report.json").read_text())
        judge = json.loads((args.model / "judge/judge.json").read_text())
        every = pictures.load(args.work)
        values = facts(args.model, args.work, every, judge)
        by_step = ratios(args.work / "activations.csv")
    except FileNotFoundError as error:
        print(f"error: {error.filename} does not exist: train and probe first", file=sys.stderr)
        return 3
    pipeline = pipeline_folder.load(args.model)
    watch.sheet(pipeline, args.model / "pictures.png")
    curve.draw(args.work / "curve.csv", args.model / "curve.png")
    draw_emergence(by_step, args.model / "emergence.png")
    part = report["Detail Guidance against CFG alone"]
    values |= {
        "quality_steps": report["about"]["images"].split(", ")[1].split()[0],
        "quality": arms_section(part),
        "neighbours": neighbours_section(draw_held_out(pipeline, every, args.images), every),
        "massive": claims(report, "Which channels are massive"),
        "emergence": emergence(by_step),
        "guidance": "\n".join(
            [claims(report, "Detail Guidance against CFG alone"), claims(report, "Settings", 2)]
        ),
    }
    template = (Path(__file__).parent / "card.md").read_text()
    for name, value in values.items():
        template = template.replace("{{" + name + "}}", value)
    (args.model / "README.md").write_text(template)
    return 0


if __name__ == "__main__":
    sys.exit(main())
