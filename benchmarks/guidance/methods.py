"""The methods that are compared, the settings tried for each, and what a run costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.guidance.rules import Dropped, Ruled
from intaglio.analysis.guidance.negatives import Blurred, Skipped, Weaker
from intaglio.torch_reference.guidance import Method, Suppressed
from intaglio.torch_reference.model import Model, Step

BASE = "CFG+DG"
WHOLE, FIRST_FIFTH = (0.0, 1.0), (0.01, 0.2)
MOST_STEPS = 60


@dataclass(frozen=True)
class Setting:
    """A method, its setting in words, and the options of `Pipeline.generate` that ask for it, or
    None where the runtime does not have it."""

    method: Method
    words: str
    runtime: dict[str, Any] | None = None


def grids(model: Model, given: Method, weaker: Weaker) -> dict[str, list[Setting]]:
    """Return the settings to try by method; `given` is the model's own setting of CFG+DG."""
    assert isinstance(given.negative, Suppressed)
    own, blocks = given.negative, model.blocks
    middle, late = blocks // 2, round(0.65 * blocks)
    tried_blocks = sorted({own.block, middle - 1, middle, late})

    def dg(cfg_scale: float, weight: float, block: int) -> Setting:
        method = replace(
            given, cfg_scale=cfg_scale, weight=weight, negative=replace(own, block=block)
        )
        # A bundle has one block.
        options = {"cfg_scale": cfg_scale, "dg_scale": weight} if block == own.block else None
        cfg = "" if cfg_scale == 1.0 else f"cfg {cfg_scale:g}, "
        return Setting(method, f"{cfg}w {weight:g}, m {block}", options)

    return {
        "none": [Setting(Method(), "", {"cfg_scale": 1.0, "dg_scale": 0.0})],
        "CFG": [_ruled("cfg", scale) for scale in (1.5, 2.0, 2.5)],
        "DG": [dg(1.0, weight, own.block) for weight in (0.5, 1.0, 2.0)],
        BASE: [
            *(dg(2.0, 1.0, block) for block in tried_blocks),
            *(dg(cfg_scale, 2.0, own.block) for cfg_scale in (1.5, 2.0)),
        ],
        "SLG": [
            _skipping(2.0, 2.8, middle, FIRST_FIFTH),
            _skipping(2.0, 0.25, middle, WHOLE),
            _skipping(1.5, 0.5, middle, WHOLE),
        ],
        "S2-Guidance": [
            Setting(Method(scale, weight, Dropped()), f"cfg {scale:g}, w {weight:g}")
            for scale, weight in ((2.0, 0.25), (1.5, 0.5))
        ],
        "APG": [_ruled("apg", scale) for scale in (2.0, 3.0)],
        "CFG-Zero*": [
            _ruled("cfg-zero", scale, zero) for scale, zero in ((1.5, 0), (2.0, 0), (2.0, 1))
        ],
        "TCFG": [_ruled("tcfg", scale) for scale in (2.0, 2.5, 3.0)],
        "MAMBO-G": [
            _ruled("mambo-g", scale, alpha=alpha)
            for scale, alpha in ((3.0, 2.0), (5.0, 8.0), (10.0, 8.0))
        ],
        "TAG": [_tag(*pair) for pair in ((1.0, 1.1), (1.5, 1.1), (2.0, 1.1))],
        "autoguidance": [
            Setting(Method(scale, weight, weaker), f"cfg {scale:g}, w {weight:g}")
            for scale, weight in ((1.0, 1.0), (1.0, 2.0), (1.5, 0.5))
        ],
        "blurred negative": [
            Setting(Method(scale, weight, Blurred()), f"cfg {scale:g}, w {weight:g}")
            for scale, weight in ((2.0, 0.05), (2.0, 0.15), (1.5, 0.15))
        ],
    }


def _ruled(rule: str, scale: float, zero_steps: int = 1, alpha: float = 8.0) -> Setting:
    options: dict[str, Any] = {"cfg_scale": scale, "dg_scale": 0.0, "guidance": rule}
    words = f"cfg {scale:g}"
    if rule == "cfg":
        return Setting(Method(scale), words, options)
    if rule == "cfg-zero":
        options["guidance_zero_steps"] = zero_steps
        words += f", {zero_steps} zero steps" if zero_steps != 1 else ", 1 zero step"
    if rule == "mambo-g":
        options["guidance_alpha"] = alpha
        words += f", alpha {alpha:g}"
    return Setting(Ruled(scale, rule=rule, zero_steps=zero_steps, alpha=alpha), words, options)


def _tag(scale: float, tag: float) -> Setting:
    options = {"cfg_scale": scale, "dg_scale": 0.0, "guidance_tag": tag, "scheduler": "euler"}
    return Setting(Ruled(scale, tag=tag), f"cfg {scale:g}, t {tag:g}", options)


def _skipping(scale: float, weight: float, block: int, window: tuple[float, float]) -> Setting:
    options = {
        "cfg_scale": scale, "dg_scale": 0.0, "slg_layers": [block], "slg_scale": weight,
        "slg_window": window,
    }  # fmt: skip
    words = f"cfg {scale:g}, w {weight:g}, block {block}, steps {window[0]:g}:{window[1]:g}"
    return Setting(Method(scale, weight, Skipped(block), window), words, options)


def row_blocks(method: Method, steps: int, blocks: int, share: float) -> float:
    """Return rows times blocks of a run; `share` is what a row of the weaker model costs.

    A skipped block costs as much as the others, since the runtime runs it with its gates at zero.
    """
    total = 0.0
    for index in range(steps):
        step = Step(torch.empty(0), torch.empty(0), index, steps, 0.0)
        total += blocks * (1 if method.scale_at(step) == 1.0 else 2)
        if not method.weight_at(step) or isinstance(method.negative, Blurred):
            continue
        if isinstance(method.negative, Suppressed):
            total += blocks - 1 - method.negative.block
        else:
            total += blocks * (share if isinstance(method.negative, Weaker) else 1.0)
    return total


def equal_steps(method: Method, budget: float, blocks: int, share: float) -> int:
    """Return the number of steps whose rows times blocks are nearest to `budget`."""
    return min(
        range(1, MOST_STEPS + 1),
        key=lambda steps: abs(row_blocks(method, steps, blocks, share) - budget),
    )


def weaker_share(model: Model, weaker: Weaker) -> float:
    """Return the parameters of the weaker model's blocks over those of the model's."""

    def parameters(modules: Sequence[nn.Module]) -> int:
        return sum(value.numel() for module in modules for value in module.parameters())

    return parameters(weaker.adapter(model.adapter).blocks()) / parameters(model.adapter.blocks())
