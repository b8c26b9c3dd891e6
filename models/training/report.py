"""Draw the pictures of the shipped model's report in less time than `intaglio probe` takes.

A prompt of this model ends in 16 equal rows of zeros. One row in their place, weighted in attention
(flow.RepeatedRowAttention), computes the same function in two thirds of the time. The pictures are
written where the probe looks for them: `make report` runs this program and then the probe.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from intaglio.analysis.experiments import baselines
from intaglio.analysis.experiments.gallery import Gallery
from intaglio.analysis.guidance.dg_settings import method_from_settings
from intaglio.analysis.guidance.negatives import Weaker, WithoutKey
from intaglio.analysis.quality.judge import Judge
from intaglio.analysis.report.output_folder import PICTURES
from intaglio.torch_reference.fingerprint import identity
from intaglio.torch_reference.model import Model
from intaglio_export.options import read_settings
from intaglio_export.sources import open_source

from . import flow, text


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(
        prog="python -m models.training.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", type=Path, default=Path("models/fashion-sd3"))
    p.add_argument("-o", "--out", type=Path, default=Path("build/report"), help="report folder")
    p.add_argument("--images", type=int, default=5000, help="pictures of each method")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--arms", nargs="+", help="draw only these methods")
    p.add_argument("--threads", type=int, default=2)
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    adapter = open_source(args.model).adapter
    judge = Judge.open(args.model / "judge")
    model = Model(adapter, judge.prompts, text.MAX_SEQUENCE_LENGTH)
    model_identity = identity(model)
    weaker = Weaker.open(args.model / "weaker", adapter)
    for transformer in (adapter.transformer, weaker.transformer):
        transformer.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
    model.shorten(text.MAX_LENGTH + 1)
    folder = args.out / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    setting = method_from_settings(read_settings(args.model / "settings.json"), adapter)
    gallery = Gallery(model, judge, folder, args.steps, model_identity)
    # Keys can be hidden only in torch's own attention, so the probe draws these pictures itself.
    others = {
        name: negative
        for name, negative in baselines.negatives(gallery, setting, weaker).items()
        if not isinstance(negative, WithoutKey)
    }
    pilot = baselines.run_pilot(gallery, setting, others)
    methods = baselines.methods_to_compare(gallery, setting, pilot, others)
    names = baselines.names_at(setting.cfg_scale)
    bar = tqdm()
    gallery = Gallery(model, judge, folder, args.steps, model_identity, bar.update)
    for name, method in methods.items():
        if not args.arms or name in args.arms:
            bar.set_description(name)
            gallery.draw(method, names.seeds(name, args.images), omega=method.guided)
    return 0


if __name__ == "__main__":
    sys.exit(main())
