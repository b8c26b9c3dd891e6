"""Draw the pictures of the shipped model's report in less time than `intaglio probe` would.

A prompt of this model ends in 16 equal rows of zeros. With one in their place, weighted in
attention (flow.RepeatedRowAttention), the function is the same and takes two thirds of the time.
The pictures go where the probe looks for them: `make report` runs this, and then the probe.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from intaglio.analysis import arms
from intaglio.analysis.folder import PICTURES
from intaglio.analysis.gallery import Gallery
from intaglio.analysis.judge import Judge
from intaglio.analysis.methods import Weaker
from intaglio.analysis.sampler import Model, identity
from intaglio.analysis.setting import method_of
from intaglio_export.options import read_settings
from intaglio_export.sources import open_source

from . import flow, text


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    p = argparse.ArgumentParser(
        prog="python -m models.training.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", type=Path, default=Path("models/fashion-sd3"))
    p.add_argument("-o", "--out", type=Path, default=Path("build/report"), help="of the probe")
    p.add_argument("--images", type=int, default=5000, help="of each arm, as the probe's --images")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--arms", nargs="+", help="only these")
    p.add_argument("--threads", type=int, default=2)
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    adapter = open_source(args.model).adapter
    judge = Judge.open(args.model / "judge")
    model = Model(adapter, judge.prompts, text.MAX_SEQUENCE_LENGTH)
    known = identity(model)
    weaker = Weaker.open(args.model / "weaker", adapter)
    for transformer in (adapter.transformer, weaker.transformer):
        transformer.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
    model.shorten(text.MAX_LENGTH + 1)
    folder = args.out / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    setting = method_of(read_settings(args.model / "settings.json"), adapter)
    gallery = Gallery(model, judge, folder, args.steps, known)
    methods = arms.arms(gallery, setting, arms.pilot(gallery, setting, weaker), weaker)
    gallery = Gallery(model, judge, folder, args.steps, known, (bar := tqdm()).update)
    for name, method in methods.items():
        if not args.arms or name in args.arms:
            bar.set_description(name)
            gallery.draw(method, arms.seeds(name, args.images), omega=method.guided)
    return 0


if __name__ == "__main__":
    sys.exit(main())
