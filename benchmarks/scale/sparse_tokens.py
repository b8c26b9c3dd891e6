"""Whether D_m could be computed for a part of the tokens, or of the columns, only, in one step.

    python -m benchmarks.scale.sparse_tokens models/fashion-sd3

Along guided runs of a model's own settings, of D_c - D_m by the tokens where it is largest (an
oracle: a runtime would have to guess them): what is lost when the other tokens keep D_c's hidden
states in every block after the fork, so that only queries, projections and feed-forward layers of
the chosen ones are computed. And how many columns of the hidden states' difference hold 99 % of its
energy, block by block. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from intaglio.analysis.guidance.dg_settings import method_from_settings
from intaglio.torch_reference.guidance import Suppressed, ramp
from intaglio.torch_reference.hooks import replace_streams
from intaglio.torch_reference.model import Model, Step
from intaglio.torch_reference.suppression import channel_tensors
from intaglio_export.adapters import Adapter
from intaglio_export.calibration.prompts import PROMPTS
from intaglio_export.options import read_settings
from intaglio_export.sources import open_source

SHARES = (0.75, 0.5, 0.25, 0.1)
HELD = 0.99  # of the energy


@contextmanager
def recording(adapter: Adapter, blocks: range) -> Iterator[dict[int, torch.Tensor]]:
    """The image stream after each of `blocks` of what runs meanwhile."""
    seen: dict[int, torch.Tensor] = {}

    def keep(block: int, hidden: torch.Tensor) -> torch.Tensor:
        seen[block] = hidden.clone()
        return hidden

    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(replace_streams(adapter, block, partial(keep, block)))
        yield seen


class Experiment:
    """Sums over steps and images."""

    def __init__(self, model: Model, how: Suppressed, cfg_scale: float, weight: float) -> None:
        self.model, self.how, self.cfg_scale, self.weight = model, how, cfg_scale, weight
        self.after = range(how.block + 1, model.blocks)
        self.lost: dict[float, float] = defaultdict(float)
        self.energy = 0.0
        self.columns: dict[int, list[int]] = defaultdict(list)

    def predict(
        self, step: Step, conditional: dict[str, torch.Tensor], null: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The guided prediction of all tokens."""
        adapter, n = self.model.adapter, len(step.latents)
        shared = {"latent": step.latents, "timestep": step.timestep.expand(n)}
        d_0 = adapter.run(null | shared)
        with recording(adapter, self.after) as base:
            d_c = adapter.run(conditional | shared)
        with self.suppressing(step), recording(adapter, self.after) as degraded:
            d_m = adapter.run(conditional | shared)
        term = d_c - d_m
        self.energy += float(term.square().sum())
        for block in self.after:
            by_column = (base[block] - degraded[block]).square().sum((0, 1)).sort(descending=True)
            held = by_column.values.cumsum(0) / by_column.values.sum()
            self.columns[block].append(int((held < HELD).sum()) + 1)
        for share in SHARES:
            chosen = self.largest(term, share)
            with ExitStack() as hooks:
                hooks.enter_context(self.suppressing(step))
                for block in self.after:
                    mix = partial(torch.where, ~chosen, base[block])
                    hooks.enter_context(replace_streams(adapter, block, mix))
                sparse = d_c - adapter.run(conditional | shared)
            self.lost[share] += float((sparse - term).square().sum())
        return d_c + (self.cfg_scale - 1.0) * (d_c - d_0) + self.weight * term

    def suppressing(self, step: Step) -> ExitStack:
        adapter, how = self.model.adapter, self.how
        mask, ref = channel_tensors(how.channels, how.ref, adapter.channels)
        share = mask * (1.0 - ramp(how.ma_keep, step))
        stack = ExitStack()
        stack.enter_context(
            replace_streams(adapter, how.block, lambda hidden: torch.lerp(hidden, ref, share))
        )
        return stack

    def largest(self, term: torch.Tensor, share: float) -> torch.Tensor:
        """[N, T, 1], the tokens of each image where the term is largest."""
        patch, (rows, columns) = self.model.adapter.patch_size, self.model.grid
        cells = nn.functional.avg_pool2d(term.square().sum(1), patch)
        energy = cells.reshape(len(term), rows * columns)
        places = energy.topk(round(share * rows * columns)).indices
        return torch.zeros_like(energy, dtype=torch.bool).scatter(1, places, True)[..., None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    source = open_source(str(args.model))
    assert source.settings is not None
    assert not source.adapter.latent().packed
    settings = read_settings(source.settings)
    method = method_from_settings(settings, source.adapter)
    assert method is not None
    assert isinstance(method.negative, Suppressed)
    model = Model(source.adapter, [p for p in PROMPTS if p], settings.max_sequence_length or 1)
    experiment = Experiment(model, method.negative, method.cfg_scale, method.weight)
    model.sample(experiment.predict, range(args.images), args.steps)
    print("| tokens computed | error of D_c - D_m |\n|---:|---:|")
    for share, lost in experiment.lost.items():
        print(f"| {share:.0%} | {(lost / experiment.energy) ** 0.5:.1%} |")
    print("\n| after block | columns with 99 % of the difference |\n|---:|---:|")
    for block, counts in experiment.columns.items():
        print(f"| {block} | {sum(counts) / len(counts):.0f} of {model.adapter.channels} |")


if __name__ == "__main__":
    main()
