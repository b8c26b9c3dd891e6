"""Search the settings of Detail Guidance for emoji-sd3, and compare methods on other seeds.

These are parts 5 and 7 of `intaglio probe` in less time: one zero row stands for all that end a
prompt (flow.RepeatedRowAttention), and the model runs in bfloat16. Train the judge first. What was
drawn is kept in --work, so an interrupted search continues. MODEL/settings.json gets the setting.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from intaglio.analysis.channels.model_recorder import record_model
from intaglio.analysis.experiments import baselines, comparison, search
from intaglio.analysis.experiments.gallery import Gallery
from intaglio.analysis.guidance.dg_settings import method_from_settings
from intaglio.analysis.guidance.negatives import WithoutKey
from intaglio.analysis.quality.judge import Judge
from intaglio.analysis.report.page import plain
from intaglio.torch_reference.fingerprint import identity
from intaglio.torch_reference.guidance import Method
from intaglio.torch_reference.model import Model
from intaglio_export.errors import ExportError
from intaglio_export.options import read_settings
from intaglio_export.sources import open_source
from models.training import flow, text

from . import packages
from .examples import MAX_LENGTH

OBSERVED = 40  # pictures that the statistics of the channels are taken of
Json = dict[str, Any]


def open_gallery(model: Path, folder: Path, steps: int) -> Gallery:
    """Return a gallery of the model in `model`, whose files are kept in `folder`."""
    adapter = open_source(model).adapter
    judge = Judge.open(model / "judge")
    drawn = Model(adapter, judge.prompts, text.MAX_SEQUENCE_LENGTH)
    name = identity(drawn)
    adapter.transformer.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
    drawn.shorten(MAX_LENGTH + 1)
    folder.mkdir(parents=True, exist_ok=True)
    return Gallery(drawn, judge, folder, steps, name, tqdm(unit=" pictures").update)


def compare(gallery: Gallery, setting: Method, images: int) -> Json:
    """Draw `images` pictures with each method from the same seeds, and compare them with CFG alone.

    The other methods' terms are as long as DG's.
    """
    others = {
        name: negative
        for name, negative in baselines.negatives(gallery, setting, None).items()
        # Keys can be hidden only in torch's own attention.
        if not isinstance(negative, WithoutKey)
    }
    pilot = baselines.run_pilot(gallery, setting, others)
    methods = baselines.methods_to_compare(gallery, setting, pilot, others)
    base = baselines.names_at(setting.cfg_scale).base
    seeds = range(baselines.SEED, baselines.SEED + images)
    drawn = {name: gallery.draw(method, seeds) for name, method in methods.items()}
    found: Json = {}
    for name, pictures in drawn.items():
        found[name] = {"measured": comparison.measured(pictures, gallery.judge)}
        if name != base:
            found[name]["gap"] = comparison.against(drawn[base], pictures, gallery.judge)
    return found


def run(args: argparse.Namespace) -> Json:
    """Search, compare and write both files; return what was found."""
    gallery = open_gallery(args.model, args.work / "search", args.steps)
    statistics = record_model(
        gallery.model,
        range(OBSERVED),
        args.steps,
        args.work / "search" / "statistics.npz",
        points=("after",),
    ).channels()
    section, settings = search.search(
        gallery, statistics, args.cfg_scale, None, args.images, args.confirm
    )
    length = {"max_sequence_length": text.MAX_SEQUENCE_LENGTH, "license": "Apache-2.0"}
    (args.model / "settings.json").write_text(json.dumps(plain(settings) | length, indent=1) + "\n")
    # A setting that was no better has dg_scale 0, but how it compares is still a result.
    scale = settings["evidence"].get("dg_scale_tried", settings["dg_scale"])
    tried = replace(read_settings(args.model / "settings.json"), dg_scale=scale)
    setting = method_from_settings(tried, gallery.model.adapter)
    assert setting is not None
    report = {
        "search": section.numbers,
        "claims": section.claims,
        "images": args.compare,
        "methods": compare(gallery, setting, args.compare),
    }
    found: Json = plain(report)
    (args.work / "search.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m models.training.emoji.settings", description=__doc__
    )
    p.add_argument("--model", type=Path, default=Path("models/emoji-sd3"))
    p.add_argument("--work", type=Path, default=packages.default_cache())
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--cfg-scale", type=float, default=4.0)
    p.add_argument("--images", type=int, default=200, help="pictures for each setting tried")
    p.add_argument("--confirm", type=int, default=500, help="pictures that confirm the best one")
    p.add_argument("--compare", type=int, default=1000, help="pictures of each method")
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = run(args)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print("\n".join(found["claims"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
