"""Write the model card from the files that training, evaluation and the probe wrote.

Most figures on the card come from these files; if one is missing, the card is not written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from intaglio_export.calibration.massive import CONDITIONS, RATIO, TOKENS

from . import curve, pipeline_folder

Json = dict[str, Any]


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def guidance_rows(evaluation: Json) -> dict[str, Json]:
    """Return the rows of the evaluation by guidance scale."""
    return {k.split()[1]: v for k, v in evaluation.items() if k.startswith("cfg_scale")}


def quality_section(evaluation: Json) -> str:
    """Return accuracy and Fréchet distance for each guidance scale."""
    rows = [
        [scale, f"{row['accuracy']:.3f}", f"{row['frechet']:.1f}", row["images"]]
        for scale, row in guidance_rows(evaluation).items()
    ]
    return table(["cfg_scale", "class accuracy", "Fréchet distance", "images"], rows)


def neighbour_section(evaluation: Json) -> str:
    """Return distances to the nearest training image, of generated and of held-out images."""
    rows = []
    for scale, row in guidance_rows(evaluation).items():
        n = row["neighbours"]
        low, middle = n["generated_5_percent"], n["generated_median"]
        rows.append([f"cfg_scale {scale}", f"{middle:.4f}", f"{low:.4f}", n["images"]])
    low, middle = n["held_out_5_percent"], n["held_out_median"]
    rows.append(["held-out images", f"{middle:.4f}", f"{low:.4f}", n["images"]])
    return table(["images", "median", "5 % quantile", "how many"], rows)


def activation_section(activations: Json) -> str:
    """Return the ratio of the top channel to the median one, for each block and timestep."""
    cells, steps = activations["cells"], activations["steps"]
    blocks = 1 + max(c["block"] for c in cells)
    shown = [0, steps // 4, steps // 2, 3 * steps // 4, steps - 1]
    at = {(c["block"], c["step"]): c for c in cells}
    rows = []
    for block in range(blocks):
        own = [at[block, s] for s in range(steps)]
        names = [c["channels"][0] for c in own]
        top = max(set(names), key=names.count)
        rows.append(
            [
                block,
                *(
                    f"{at[block, s]['ratios'][0]:.1f} ({at[block, s]['channels'][0]})"
                    for s in shown
                ),
                f"{names.count(top)}/{steps}",
                f"{min(c['agreement'] for c in own):.2f}",
                f"{max(c['max_abs'] for c in own):.1f}",
            ]
        )
    head = ["block", *(f"sigma {at[0, s]['sigma']:.2f}" for s in shown)]
    head += ["steps with the commonest top channel", "lowest agreement", "max abs z"]
    return table(head, rows)


def massive_blocks(activations: Json) -> list[int]:
    """Return the blocks with a channel that is massive at CONDITIONS of the steps."""
    steps = activations["steps"]
    found: dict[tuple[int, int], int] = {}
    for c in activations["cells"]:
        if c["ratios"][0] >= RATIO and c["agreement"] >= TOKENS:
            key = (c["block"], c["channels"][0])
            found[key] = found.get(key, 0) + 1
    return sorted({block for (block, _), count in found.items() if count >= CONDITIONS * steps})


def massive_verdict(activations: Json) -> str:
    """Say in one sentence whether there are massive channels."""
    blocks = massive_blocks(activations)
    share = "on 90 % of the tokens and 80 % of the steps"
    if not blocks:
        return (
            "**Massive channels did not emerge**: after no block is one channel at least"
            f" {RATIO:g} times the median channel {share}. Some channels are larger than"
            " the others, so the settings name their channels explicitly."
        )
    names = ", ".join(str(b) for b in blocks)
    return f"One channel is at least {RATIO:g} times the median {share} after blocks {names}."


def search_section(rows: list[Json]) -> str:
    """Return a table of every setting that the probe tried."""
    head = ["setting", "cost of a step", "Fréchet distance", "accuracy"]
    cells = [
        [r["setting"], f"{r['cost']:.2f}", f"{r['frechet']:.2f}", f"{r['accuracy']:.3f}"]
        for r in rows
    ]
    return table(head, cells)


def confirmation_section(evidence: Json) -> str:
    """Compare CFG alone, the chosen setting and random channels on other seeds."""
    names = {"cfg": "CFG alone", "cfg_dg": "CFG and DG", "cfg_random": "CFG and random channels"}
    rows = []
    for key, name in names.items():
        row, gaps = evidence[key], evidence.get(f"{key}_minus_cfg")
        distance, accuracy = ("", "")
        if gaps:
            distance, accuracy = (interval(gaps[measure]) for measure in ("frechet", "accuracy"))
        rows.append([name, f"{row['frechet']:.2f}", distance, f"{row['accuracy']:.4f}", accuracy])
    head = ["setting", "Fréchet distance", "minus CFG alone", "accuracy", "minus CFG alone"]
    return table(head, rows) + "\n\n" + confirmation_verdict(evidence)


def interval(gap: Json) -> str:
    """Return a difference with its interval, as the tables show it."""
    return f"{gap['measured']:+.3g} [{gap['low']:+.3g}, {gap['high']:+.3g}]"


def confirmation_verdict(evidence: Json) -> str:
    """Say what the intervals mean, including the cost in accuracy."""
    gap, random = (evidence[f"{n}_minus_cfg"]["frechet"] for n in ("cfg_dg", "cfg_random"))
    accuracy = evidence["cfg_dg_minus_cfg"]["accuracy"]
    if gap["low"] > 0:
        words = (
            "The whole interval is above zero: **DG makes these pictures worse than CFG alone.**"
        )
    elif gap["high"] >= 0:
        words = "The interval contains zero: **DG was not measurably better than CFG alone.**"
    else:
        words = (
            "The whole interval is below zero: by the Fréchet distance, CFG with DG is measurably"
            " better than CFG alone."
        )
        if random["measured"] <= gap["measured"]:
            words += (
                " As many random channels do at least as well, so the gain comes from guiding away"
                " from a damaged model and not from these channels."
            )
        elif random["high"] < 0:
            words += " Random channels help too, but less."
        else:
            words += " As many random channels do not help."
    if accuracy["high"] < 0:
        words += " **It costs class accuracy**, by the difference in the last column."
    elif accuracy["low"] > 0:
        words += " Class accuracy rises as well."
    else:
        words += " Class accuracy does not change measurably."
    return words


def facts(model: Path, work: Path) -> Json:
    """Return sizes, parameter counts and training time."""
    pipeline = pipeline_folder.load(model)
    parts = {
        "transformer": pipeline.transformer,
        "text encoders": (pipeline.text_encoder, pipeline.text_encoder_2),
        "autoencoder": pipeline.vae,
    }
    counts = {}
    for name, modules in parts.items():
        group = modules if isinstance(modules, tuple) else (modules,)
        counts[name] = sum(p.numel() for m in group for p in m.parameters())
    columns = curve.read(work / "curve.csv")
    size = sum(f.stat().st_size for f in model.rglob("*") if f.is_file())
    return {
        "counts": counts,
        "size": size / 1e6,
        "steps": int(columns["step"][-1]),
        "minutes": columns["seconds"][-1] / 60.0,
        "loss": sum(columns["loss"][-10:]) / len(columns["loss"][-10:]),
        "config": pipeline.transformer.config,
        "vae": pipeline.vae.config,
        "vocabulary": len(pipeline.tokenizer),
    }


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.card", description=__doc__)
    p.add_argument("--model", type=Path, default=Path("models/fashion-sd3"))
    p.add_argument("--work", type=Path, default=Path("build/training"))
    p.add_argument("--probe", type=Path, default=Path("build/probe"), help="report folder")
    args = p.parse_args(argv)
    try:
        evaluation = json.loads((args.work / "evaluation.json").read_text())
        report = json.loads((args.probe / "report.json").read_text())
        settings = json.loads((args.probe / "settings.json").read_text())
        f = facts(args.model, args.work)
    except FileNotFoundError as error:
        print(f"error: {error.filename} does not exist: evaluate and probe first", file=sys.stderr)
        return 3
    curve.draw(args.work / "curve.csv", args.model / "curve.png")
    template = (Path(__file__).parent / "card.md").read_text()
    ratio = max(evaluation["activations"]["cells"], key=lambda c: c["ratios"][0])
    values = {
        **{k: f[k] for k in ("steps", "vocabulary")},
        "size": f"{f['size']:.1f}",
        "minutes": f"{f['minutes']:.0f}",
        "loss": f"{f['loss']:.3f}",
        "parameters": ", ".join(f"{k} {v / 1e6:.2f} million" for k, v in f["counts"].items()),
        "scaling": f["vae"].scaling_factor,
        "shift": f["vae"].shift_factor,
        "quality": quality_section(evaluation),
        "neighbours": neighbour_section(evaluation),
        "judge": f"{evaluation['judge_accuracy']:.3f}",
        "evaluation_steps": evaluation["steps"],
        "activations": activation_section(evaluation["activations"]),
        "top": f"{ratio['ratios'][0]:.1f} (block {ratio['block']}, channel {ratio['channels'][0]})",
        "verdict": massive_verdict(evaluation["activations"]),
        "search": search_section(report["Settings"]["rows"]),
        "search_steps": settings["evidence"]["steps"],
        "confirmation": confirmation_section(settings["evidence"]),
        "confirm_images": settings["evidence"]["images"],
        "settings": json.dumps({k: v for k, v in settings.items() if k != "evidence"}),
    }
    for name, value in values.items():
        template = template.replace("{{" + name + "}}", str(value))
    (args.model / "README.md").write_text(template)
    return 0


if __name__ == "__main__":
    sys.exit(main())
