"""What is measured of a model: one function a section of the report, each giving plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.bench.counts import count_step
from benchmarks.bench.measuring import check_same, interleave, ratio, seconds, spread
from benchmarks.bench.models import ROOT, Model
from benchmarks.bench.runtimes import EAGER, FORKED, OURS, PEERS, Runtime, open_runtimes
from benchmarks.bench.workload import MODES, Workload

SHIPPED = ROOT / "build/bundles"  # of `make bench`, which exports them first
Runs = Mapping[str, tuple[Runtime, Workload]]


@dataclass(frozen=True)
class Effort:
    """How much is measured; `threads` for everyone."""

    threads: int = 2
    rounds: int = 5
    steps: int = 2
    sides: tuple[int, ...] = (8, 16, 32)
    batches: tuple[int, ...] = (1, 2, 4)
    lengths: tuple[int, ...] = (1, 2, 4)


def middle(model: Model) -> int:
    """The block after which the headline forks."""
    return model.blocks // 2


def workload_of(model: Model, effort: Effort) -> Workload:
    return Workload(model.adapter, model.tokens, model.text_tokens, steps=effort.steps)


def predicted(model: Model, block: int, mode: str) -> float:
    """Forwards of a mode in layout forked, (L - 1 - m) / L of one for D_m."""
    after = (model.blocks - 1 - block) / model.blocks
    return {"baseline": 1.0, "cfg": 2.0, "dg": 1.0 + after, "cfg+dg": 2.0 + after}[mode]


def compare(model: Model, effort: Effort) -> dict[str, Any]:
    """All runtimes on CFG+DG; the fastest peer over sizes, and this one over all axes."""
    block = middle(model)
    base = workload_of(model, effort)
    required = (*OURS, EAGER)  # without them there is no comparison
    with open_runtimes(model, block, effort.threads) as (runtimes, missing):
        # What fails in its first run, as torch.compile may, is told and left out.
        for name in required:
            if name in missing:
                raise RuntimeError(f"{name}: {missing[name]}")
        for name in list(runtimes):
            try:
                runtimes[name](base.with_(steps=1))
            except Exception as error:
                if name in required:
                    raise
                missing[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                del runtimes[name]
        print(f"{model.name}: comparing {', '.join(runtimes)}", flush=True)
        samples = interleave({n: (run, base) for n, run in runtimes.items()}, effort.rounds)
        errors = check_same(samples, EAGER, missing)
        rows = {
            name: {
                "seconds_per_step": spread([s / effort.steps for s in seconds(of)]),
                "ratio_to_forked": ratio(of, samples[FORKED]),
                "relative_l2": errors[name],
            }
            for name, of in samples.items()
            if name in errors
        }
        peers = {n: rows[n]["ratio_to_forked"]["median"] for n in PEERS if n in rows}
        fastest = min(peers, key=lambda name: peers[name])
        pair = {FORKED: runtimes[FORKED], fastest: runtimes[fastest]}
        result: dict[str, Any] = {
            "block": block,
            "tokens": base.side**2,
            "steps": effort.steps,
            "runtimes": rows,
            "missing": missing,
            "fastest_peer": fastest,
            "loop": loop_of(samples[FORKED]),
        }
        result["scaling"] = scaling(model, effort, base, pair)
    return result


def loop_of(samples: list[Any]) -> dict[str, Any]:
    """What this runtime did between and around its runs of the network."""
    generations = [sample.seen for sample in samples]
    last = generations[-1]
    steps = len(last.step_seconds)
    shares = [1.0 - g.timings.network / g.timings.denoise for g in generations]
    return {
        "outside_network": spread(shares),
        "allocations_per_step": last.loop.allocations / steps,
        "copies_per_step": last.loop.copies / steps,
        "copied_bytes_per_step": last.loop.copied_bytes / steps,
    }


def scaling(
    model: Model, effort: Effort, base: Workload, runtimes: Mapping[str, Runtime]
) -> dict[str, list[dict[str, Any]]]:
    """Seconds over image tokens, and of this runtime over images of a batch and steps."""
    cases: dict[str, list[tuple[int, Workload]]] = {
        "tokens": [(side**2, base.with_(side=side)) for side in effort.sides],
        "images": [(images, base.with_(images=images)) for images in effort.batches],
        "steps": [(steps, base.with_(steps=steps)) for steps in effort.lengths],
    }
    bundle = model.bundle("forked", middle(model))

    @cache  # `base` is on every axis
    def measured(side: int, images: int, steps: int) -> dict[str, Any]:
        print(f"{model.name}: {side**2} tokens, {images} images, {steps} steps", flush=True)
        workload = base.with_(side=side, images=images, steps=steps)
        names = runtimes if (images, steps) == (base.images, base.steps) else [FORKED]
        runs = {name: (runtimes[name], workload) for name in names}
        samples = interleave(runs, max(1, effort.rounds - 3))
        check_same(samples, FORKED)
        text = workload.text_tokens
        count = count_step(bundle, images=images, cfg=True, dg=True, side=side, text_tokens=text)
        return {
            "flops": count.flops * steps,
            "seconds": {name: spread(seconds(of)) for name, of in samples.items()},
        }

    return {
        axis: [
            {"value": value, **measured(case.side, case.images, case.steps)}
            for value, case in points
        ]
        for axis, points in cases.items()
    }


def curve(model: Model, effort: Effort, blocks: list[int]) -> list[dict[str, Any]]:
    """The cost of DG with and without CFG, for each place of the fork."""
    points = []
    for block in blocks:
        model.bundle("forked", block)  # before anything is timed
        with open_runtimes(model, block, effort.threads, (FORKED,)) as (runtimes, missing):
            if missing:
                raise RuntimeError(missing[FORKED])
            base = workload_of(model, effort)
            print(f"{model.name}: fork after block {block}", flush=True)
            runs = {mode: (runtimes[FORKED], base.with_(mode=mode)) for mode in MODES}
            samples = interleave(runs, max(1, effort.rounds - 2))
        forwards = {mode: predicted(model, block, mode) for mode in MODES}
        flops = {mode: counts(model, "forked", block, mode)["flops"] for mode in MODES}
        point: dict[str, Any] = {"block": block}
        for name, mode, to in (("cfg+dg", "cfg+dg", "cfg"), ("dg", "dg", "baseline")):
            point[name] = {
                "ratio": ratio(samples[mode], samples[to]),
                "predicted": forwards[mode] / forwards[to],
                "flops_ratio": flops[mode] / flops[to],
            }
        points.append(point)
    return points


def counts(
    model: Model, layout: str, block: int, mode: str, side: int | None = None
) -> dict[str, int]:
    """Of a step of one image of `side` x `side` tokens, from the bundle's graphs."""
    cfg_scale, dg_scale = MODES[mode]
    return count_step(
        model.bundle(layout, block),
        images=1,
        cfg=cfg_scale != 1.0,
        dg=dg_scale != 0.0,
        side=side or model.tokens,
        text_tokens=model.text_tokens,
    ).summary()


def arithmetic(model: Model) -> dict[str, Any]:
    """Counts by layout and mode at the headline's fork, and of all the model's parameters."""
    parameters = sum(p.nbytes for p in model.adapter.transformer.parameters())
    return {
        "parameter_bytes": parameters,
        "layouts": {
            layout: {mode: counts(model, layout, middle(model), mode) for mode in MODES}
            for layout in ("forked", "dual")
        },
    }
