"""Search block, channels, keep and w of Detail Guidance by measurement, and confirm the choice.

Stage 1 finds a guidance scale without DG; stage 2 tries blocks and channel sets (the top ones by
mean |z|, and as many random ones as a control); stage 3 refines w and keep of the best; stage 4
compares the chosen setting with CFG alone at the same scale on other seeds and more images, in
float32, with a bootstrap interval of the paired difference. Every row is kept in --out, so a
stopped search goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from intaglio.analysis.quality import bootstrap_difference, frechet, moments, paired_difference

from . import classifier, data, evaluate, sampling, text

SEARCH_SEED, CONFIRM_SEED = 1000, 5000


@dataclass(frozen=True)
class Setting:
    """One row of the table. `kind` is "none" (no DG), "top" or "random"; `count` channels."""

    cfg_scale: float
    dg_scale: float = 0.0
    block: int = 0
    kind: str = "none"
    count: int = 0
    keep: float = 0.0
    draw: int = 0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    p = argparse.ArgumentParser(
        prog="python -m models.training.search",
        description=__doc__,
        epilog="Needs a pipeline folder and the classifier (python -m models.training.classifier).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", type=Path, default=Path("models/fashion-sd3"))
    p.add_argument("--work", type=Path, default=Path("build/training"), help="where the judge is")
    p.add_argument("--data", type=Path, default=data.DEFAULT_DATA)
    p.add_argument("--images", type=int, default=300, help="images for each setting")
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--confirm-images", type=int, default=2000)
    p.add_argument("--bootstrap", type=int, default=400, help="resamples for the interval")
    p.add_argument("--cfg-scales", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    p.add_argument("--search-cfg", type=float, default=2.0, help="scale at which DG is searched")
    p.add_argument("--blocks", type=int, nargs="+", default=[1, 3, 5])
    p.add_argument("--counts", type=int, nargs="+", default=[2, 8])
    p.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0], help="w tried")
    p.add_argument("--keeps", type=float, nargs="+", default=[0.0, 0.5])
    p.add_argument("--float32", action="store_true", help="search in float32 too, not bfloat16")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("-o", "--out", type=Path, default=Path("build/training/search.json"))
    p.add_argument("--settings", type=Path, help="also write the chosen setting here")
    args = p.parse_args(argv)
    if min(args.images, args.confirm_images) <= classifier.FEATURES:
        needed = f"a Frechet distance needs more than {classifier.FEATURES}"
        p.error(f"--images, --confirm-images: {needed}")
    return args


class Search:
    """Runs settings once each and remembers their figures in a file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.bench = evaluate.Bench.open(args.model, args.work, args.data, not args.float32)
        weights = next((args.model / "transformer").glob("*.safetensors")).read_bytes()
        self.digest = hashlib.sha256(weights).hexdigest()
        self.report: dict[str, Any] = {"weights_sha256": self.digest, "rows": []}
        if args.out.exists():
            found = json.loads(args.out.read_text())
            if found.get("weights_sha256") == self.digest:
                self.report = found
        if "activations" not in self.report:
            self.report["activations"] = evaluate.activations(self.bench)
            self.save()

    def save(self) -> None:
        self.args.out.write_text(json.dumps(self.report, indent=1))

    def channels(self, setting: Setting) -> list[int]:
        """The channels that a setting suppresses, by rank at its block or drawn at random."""
        if setting.kind == "top":
            ranked = self.report["activations"]["channels_by_block"][setting.block]
            return sorted(ranked[: setting.count])
        width = self.bench.pipeline.transformer.inner_dim
        generator = torch.Generator().manual_seed(77 + setting.draw)
        return sorted(torch.randperm(width, generator=generator)[: setting.count].tolist())

    def how(self, setting: Setting) -> dict[str, Any]:
        """Keywords for `sampling.sample`."""
        keywords: dict[str, Any] = {"cfg_scale": setting.cfg_scale, "dg_scale": setting.dg_scale}
        if setting.dg_scale:
            width = self.bench.pipeline.transformer.inner_dim
            keywords["how"] = sampling.Suppression.of(
                setting.block, self.channels(setting), width, setting.keep
            )
        return keywords

    def run(self, setting: Setting) -> dict[str, Any]:
        """Measure a setting, or return what was measured before."""
        a = self.args
        key = asdict(setting) | {"steps": a.steps, "images": a.images, "float32": a.float32}
        for row in self.report["rows"]:
            if all(row.get(k) == v for k, v in key.items()):
                return row
        labels = evaluate.balanced_labels(a.images)
        start = time.monotonic()
        pixels = self.bench.generate(labels, SEARCH_SEED, steps=a.steps, **self.how(setting))
        row = key | evaluate.quality(self.bench, pixels, labels)
        row["seconds"] = round(time.monotonic() - start, 1)
        self.report["rows"].append(row)
        self.save()
        tqdm.write(f"{setting}: FD {row['frechet']:.2f}, accuracy {row['accuracy']:.3f}")
        return row

    def best(self, settings: list[Setting], name: str) -> list[Setting]:
        """`settings` in order of their Frechet distance, the best first."""
        rows = [(self.run(s)["frechet"], i, s) for i, s in enumerate(tqdm(settings, name))]
        return [s for _, _, s in sorted(rows, key=lambda r: r[:2])]


def stages(search: Search) -> Setting:
    """Stages 1 to 3 of the module's text; returns the best setting with DG."""
    a = search.args
    search.best([Setting(s) for s in sorted({*a.cfg_scales, a.search_cfg})], "CFG alone")
    first = [
        Setting(a.search_cfg, 0.5, block, kind, count)
        for block in a.blocks
        for kind in ("top", "random")
        for count in a.counts
    ]
    ranked = search.best(first, "blocks and channels")
    tops = [s for s in ranked if s.kind == "top"][:2]
    refine = [
        Setting(s.cfg_scale, w, s.block, s.kind, s.count, keep)
        for s in tops
        for keep in a.keeps
        for w in a.scales
    ]
    ranked = search.best([*tops, *refine], "w and keep")
    chosen = ranked[0]
    # The control of the choice itself: three other draws of as many random channels.
    controls = [
        Setting(
            chosen.cfg_scale,
            chosen.dg_scale,
            chosen.block,
            "random",
            chosen.count,
            chosen.keep,
            draw,
        )
        for draw in range(3)
    ]
    search.best(controls, "random channels")
    scales = sorted({*a.cfg_scales} - {a.search_cfg, 1.0})
    others = [
        Setting(s, chosen.dg_scale, chosen.block, "top", chosen.count, chosen.keep) for s in scales
    ]
    search.best(others, "other guidance scales")
    return chosen


def confirm(search: Search, chosen: Setting) -> dict[str, Any]:
    """Stage 4: the chosen setting and random channels against CFG alone, other seeds, float32."""
    a, bench = search.args, search.bench
    bench.autocast = False
    labels = evaluate.balanced_labels(a.confirm_images)
    control = Setting(
        chosen.cfg_scale, chosen.dg_scale, chosen.block, "random", chosen.count, chosen.keep
    )
    result: dict[str, Any] = {"images": a.confirm_images, "steps": a.steps, "seed": CONFIRM_SEED}
    target = moments(bench.held.double().numpy())
    features, right = {}, {}
    runs = {"cfg": Setting(chosen.cfg_scale), "cfg_dg": chosen, "cfg_random": control}
    for name, setting in tqdm(runs.items(), "confirmation"):
        pixels = bench.generate(labels, CONFIRM_SEED, steps=a.steps, **search.how(setting))
        described, predicted = classifier.describe(bench.judge, pixels)
        features[name] = described.double().numpy()
        right[name] = (predicted == labels).double().numpy()
        result[name] = asdict(setting) | evaluate.quality(bench, pixels, labels)
        tqdm.write(f"{name}: {result[name]}")
    for name in ("cfg_dg", "cfg_random"):
        distance = bootstrap_difference(
            lambda rows: frechet(moments(rows), target),
            features["cfg"],
            features[name],
            a.bootstrap,
            seed=11,
        )
        gap = paired_difference(right["cfg"], right[name])
        result[f"{name}_minus_cfg"] = distance.to_json() | {
            "accuracy": gap.measured,
            "accuracy_plus_minus": gap.high - gap.measured,
        }
    return result


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    try:
        search = Search(args)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    chosen = stages(search)
    done = search.report.get("confirmation")
    if not done or done["cfg_dg"]["block"] != chosen.block or done["images"] != args.confirm_images:
        search.report["confirmation"] = confirm(search, chosen)
    search.report["chosen"] = asdict(chosen) | {"channels": search.channels(chosen)}
    search.save()
    evidence = search.report["confirmation"]
    print(json.dumps({"chosen": search.report["chosen"], "confirmation": evidence}, indent=1))
    if args.settings:
        settings = {
            "block": chosen.block,
            "channels": search.channels(chosen),
            "keep": chosen.keep,
            "dg_scale": chosen.dg_scale,
            "cfg_scale": chosen.cfg_scale,
            "steps": args.steps,
            "max_sequence_length": text.MAX_SEQUENCE_LENGTH,
            "license": "Apache-2.0",
            "evidence": evidence,
        }
        args.settings.write_text(json.dumps(settings, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
