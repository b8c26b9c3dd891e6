"""Write the card of emoji-sd3 from the files that training, judge, settings and evaluation wrote.

Every figure on the card comes from these files; if one is missing, the card is not written.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from intaglio_export.calibration.massive import CONDITIONS
from models.training import curve, pipeline_folder
from models.training.card import table

from . import packages, pictures

Json = dict[str, Any]
Row = dict[str, float]


def between(value: Json, digits: int = 2) -> str:
    """Return a measured value with its interval."""
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(
        value["measured"], value["low"], value["high"], d=digits
    )


def quality(splits: Json) -> str:
    """Return what the judge finds in drawn and real pictures of each split."""
    rows = []
    for title, sources in splits.items():
        for source, row in sources.items():
            near = row.get("nearest")
            rows.append(
                [
                    f"{title}, {source}",
                    between(row["name"]) if "name" in row else "",
                    between(row["kind"]),
                    between(row["frechet"], 1) if "frechet" in row else "",
                    f"{near['median']:.3f} ({near['5 %']:.3f})" if near else "",
                    row["images"],
                ]
            )
    head = ["pictures", "name right", "kind right", "Fréchet distance minus that of real ones"]
    return table([*head, "nearest training picture, median (5 %)", "how many"], rows)


def read_activations(path: Path) -> list[Row]:
    """Read the measurements that were taken while the model was trained."""
    with path.open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def activations(rows: list[Row]) -> str:
    """Return the last measurement, by block and sigma."""
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    sigmas = sorted({row["sigma"] for row in last}, reverse=True)
    at = {(row["block"], row["sigma"]): row for row in last}
    lines = []
    for block in sorted({row["block"] for row in last}):
        cells = [at[block, sigma] for sigma in sigmas]
        shown = [f"{c['ratio']:.1f} ({c['channel']:.0f}), {c['tokens']:.0%}" for c in cells]
        lines.append([f"{block:.0f}", *shown, f"{max(c['max_abs'] for c in cells):.0f}"])
    head = ["block", *(f"sigma {sigma:g}" for sigma in sigmas), "max abs z"]
    return table(head, lines)


def emergence(rows: list[Row]) -> str:
    """Return the largest ratio of any block at some training steps."""
    steps = sorted({row["step"] for row in rows})
    shown = steps[:: max(1, len(steps) // 8)]
    shown = shown if shown[-1] == steps[-1] else [*shown, steps[-1]]
    lines = []
    for step in shown:
        found = [row for row in rows if row["step"] == step and row["sigma"] == 0.5]
        top = max(found, key=lambda row: row["ratio"])
        where = f"block {top['block']:.0f}, channel {top['channel']:.0f}"
        lines.append([f"{step:.0f}", f"{top['ratio']:.1f}", where, f"{top['tokens']:.0%}"])
    return table(["step", "ratio", "where", "tokens with 10 times"], lines)


def verdict(rows: list[Row]) -> str:
    """Say in a sentence whether there are massive channels.

    `agreement` is the share of a sigma's pictures in which the largest channel is massive.
    """
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    sigmas = len({row["sigma"] for row in last})
    shares: dict[tuple[float, float], float] = {}
    for row in last:
        where = (row["block"], row["channel"])
        shares[where] = shares.get(where, 0.0) + row["agreement"] / sigmas
    found = sorted(where for where, share in shares.items() if share >= CONDITIONS)
    if not found:
        top = max(last, key=lambda row: row["ratio"])
        return (
            f"**No channel is massive yet**: the largest is {top['ratio']:.1f} times the median, on"
            f" {top['tokens']:.0%} of the tokens, after block {top['block']:.0f}."
        )
    names = "; ".join(f"{channel:.0f} after block {block:.0f}" for block, channel in found)
    return f"**Massive channels**: {names}."


def guidance(settings: Json, found: Json) -> str:
    """Return what the search found, and how methods compare on other seeds."""
    rows = []
    for name, row in found["methods"].items():
        gap, measured = row.get("gap"), row["measured"]
        rows.append(
            [
                name,
                f"{measured['frechet']:.2f}",
                between(gap["frechet"]) if gap else "",
                f"{measured['accuracy']:.3f}",
                between(gap["accuracy"], 3) if gap else "",
                f"{measured['high_frequency_energy']:.4f}",
            ]
        )
    head = ["method", "Fréchet distance", "minus CFG", "name right", "minus CFG"]
    lines = [f"- {claim}" for claim in found["claims"]]
    lines += ["", f"{found['images']} pictures of each method, from seeds of their own:"]
    lines += ["", table([*head, "power above 0.25 cycles/pixel"], rows)]
    kept = {key: value for key, value in settings.items() if key != "evidence"}
    lines += ["", f"`settings.json` holds the setting: `{json.dumps(kept)}`."]
    return "\n".join(lines)


def data_facts(work: Path) -> dict[str, str]:
    """Return how many pictures and names there are, and where they come from."""
    emoji = pictures.load(work).emoji
    held = {one.name for one in emoji if one.split == "name"}
    pairs = {(one.name, one.style) for one in emoji if one.split == "pair"}
    named = [f"{p.name} ({p.license}, {p.author})" for p in packages.PACKAGES]
    return {
        "pictures": f"{len(emoji):,}",
        "held_names": str(len(held)),
        "held_pairs": str(len(pairs)),
        "packages": ", ".join(named[:-1]),
        "names": named[-1],
    }


def model_facts(model: Path) -> dict[str, str]:
    """Return sizes and parameter counts."""
    pipeline = pipeline_folder.load(model)
    parts = {
        "transformer": [pipeline.transformer],
        "text encoders": [pipeline.text_encoder, pipeline.text_encoder_2],
        "autoencoder": [pipeline.vae],
    }
    counts = [
        f"{name} {sum(p.numel() for m in modules for p in m.parameters()) / 1e6:.2f} million"
        for name, modules in parts.items()
    ]
    weights = sum(f.stat().st_size for f in model.rglob("*.safetensors"))
    config = pipeline.transformer.config
    return {
        "parameters": ", ".join(counts),
        "size": f"{weights / 1e6:.1f}",
        "blocks": str(config.num_layers),
        "width": str(pipeline.transformer.inner_dim),
        "heads": str(config.num_attention_heads),
        "vocabulary": str(len(pipeline.tokenizer)),
    }


def values(model: Path, work: Path) -> dict[str, str]:
    """Return what the template's names stand for."""
    training = json.loads((model / "training.json").read_text())
    evaluation = json.loads((work / "evaluation.json").read_text())
    settings = json.loads((model / "settings.json").read_text())
    judge = json.loads((model / "judge/judge.json").read_text())
    measured = read_activations(model / "activations.csv")
    logged = curve.read(model / "curve.csv")
    fifth = len(logged["loss"]) // 5
    losses = [logged["loss"][-2 * fifth : -fifth], logged["loss"][-fifth:]]
    fell = logged["learning_rate"][-1] < max(logged["learning_rate"]) / 2
    return {
        **data_facts(work),
        **model_facts(model),
        "steps": f"{training['step']:,}",
        "batch": " or ".join(f"{size:.0f}" for size in sorted(set(logged["batch"]))),
        "rate": "that fell to zero in the last fifth" if fell else "after a warm-up",
        "options": f" --steps {training['step']}" if fell else "",
        "minutes": f"{training['seconds'] / 60:.0f}",
        "before": f"{sum(losses[0]) / fifth:.3f}",
        "loss": f"{sum(losses[1]) / fifth:.3f}",
        "classes": f"{len(judge['classes']):,}",
        "evaluation_steps": str(evaluation["steps"]),
        "cfg_scale": f"{evaluation['cfg_scale']:g}",
        "quality": quality(evaluation["splits"]),
        "activations": activations(measured),
        "verdict": verdict(measured),
        "emergence": emergence(measured),
        "guidance": guidance(settings, json.loads((work / "search.json").read_text())),
    }


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.emoji.card", description=__doc__)
    p.add_argument("--model", type=Path, default=Path("models/emoji-sd3"))
    p.add_argument("--work", type=Path, default=packages.default_cache())
    args = p.parse_args(argv)
    try:
        found = values(args.model, args.work)
        sheet = args.work / "sheets" / "train.png"
        shutil.copy(sheet, args.model / "samples.png")
    except FileNotFoundError as error:
        print(
            f"error: {error.filename} does not exist: run the programs at the end of the card"
            " before this one",
            file=sys.stderr,
        )
        return 3
    curve.draw(args.model / "curve.csv", args.model / "curve.png")
    (args.model / "ATTRIBUTION.md").write_text(packages.attribution())
    template = (Path(__file__).parent / "card.md").read_text()
    for name, value in found.items():
        template = template.replace("{{" + name + "}}", value)
    (args.model / "README.md").write_text(template)
    return 0


if __name__ == "__main__":
    sys.exit(main())
