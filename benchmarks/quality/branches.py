"""What quantised weights do to the differences of branches: the shipped model's graphs in float32
and in every scheme, on latents of the same runs.
`python -m benchmarks.scale.branch_errors BUNDLE SCHEME=BUNDLE... -o OUT.json`

The bundles need text encoders. Errors are relative L2 errors of the prediction D_c, of D_c - D_0,
of D_c - D_m and of the guided D with the scales of the manifest: the mean of all seeds and
timesteps and the largest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

import intaglio
from intaglio.analysis.quality.judge import Judge

MODEL = Path("models/fashion-sd3")
SEEDS = 6
STEPS = 8
SHOWN = (1, 3, 4, 5, 7)  # of the steps: those whose latents and timestep are taken
Floats = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("schemes", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    exact = Graphs(args.bundle)
    schemes = {name: Graphs(Path(path)) for name, path in (s.split("=") for s in args.schemes)}
    errors: dict[str, list[dict[str, float]]] = {name: [] for name in schemes}
    for latents, timestep, embeds in points(args.bundle):
        want = exact.branches(latents, timestep, embeds)
        for name, graphs in schemes.items():
            got = graphs.branches(latents, timestep, embeds)
            errors[name].append({of: relative(got[of], want[of]) for of in want})
    rows = {
        name: {
            of: {"mean": float(np.mean(values)), "largest": float(np.max(values))}
            for of in found[0]
            for values in ([error[of] for error in found],)
        }
        for name, found in errors.items()
    }
    args.output.write_text(json.dumps(rows, indent=2) + "\n")
    for name, row in rows.items():
        print(name, *(f"{of} {e['mean']:.2%} ({e['largest']:.2%})" for of, e in row.items()))


def points(bundle: Path) -> Iterator[tuple[Floats, float, intaglio.PromptEmbeddings]]:
    """Yield latents [1, C, h, w], timestep and prompts along float32 runs."""
    pipeline = intaglio.Pipeline.open(bundle, device="cpu")
    prompts = Judge.open(MODEL / "judge").prompts
    for seed in range(SEEDS):
        prompt = prompts[seed * len(prompts) // SEEDS]
        seen: list[tuple[Floats, float]] = []
        pipeline.generate(
            prompt,
            steps=STEPS,
            seeds=seed,
            on_step=lambda step, seen=seen: seen.append((step.latents.copy(), step.timestep)),
        )
        embeds = pipeline.embed(prompt, "")
        for step in SHOWN:
            yield seen[step - 1][0], seen[step][1], embeds


class Graphs:
    """The graphs of a forked bundle in ONNX Runtime's Python package."""

    def __init__(self, bundle: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        folder = bundle / "transformer"
        self._conditioning, self._forked = (
            ort.InferenceSession(folder / f"{name}.onnx", options, ["CPUExecutionProvider"])
            for name in ("conditioning", "forked")
        )
        manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
        self._defaults = manifest["defaults"]
        self._mask = np.zeros(manifest["transformer"]["channels"], np.float32)
        self._mask[manifest["massive_activations"]["channels"]] = 1.0

    def branches(
        self, latents: Floats, timestep: float, embeds: intaglio.PromptEmbeddings
    ) -> dict[str, Floats]:
        """Return D_c, its differences from the other branches, and the guided D."""
        pairs = {
            "text": (embeds.negative_prompt_embeds, embeds.prompt_embeds),
            "pooled": (embeds.negative_pooled_prompt_embeds, embeds.pooled_prompt_embeds),
        }
        given: dict[str, Any] = {
            role: np.concatenate([np.asarray(part) for part in pair])
            for role, pair in pairs.items()
        }
        given["timestep"] = np.full(2, timestep, np.float32)
        modulation, context = _run(self._conditioning, given, ["modulation", "context"])
        given |= {"modulation": modulation, "context": context, "mask": self._mask}
        given["latent"] = np.repeat(latents, 2, axis=0)
        given["ref"] = np.zeros_like(self._mask)
        tokens = latents.shape[2] * latents.shape[3] // 4  # of patches of 2 x 2
        given["keep"] = np.repeat(np.array([[1], [1], [0]], np.float32), tokens, axis=1)
        given["branch"], given["anchor"] = np.array([0, 1, 1]), np.array([1, 1])
        [(unconditional, conditional, degraded)] = _run(self._forked, given, ["prediction"])
        cfg, dg = (self._defaults[name] for name in ("cfg_scale", "dg_scale"))
        without, suppressed = conditional - unconditional, conditional - degraded
        return {
            "D_c": conditional,
            "D_c - D_0": without,
            "D_c - D_m": suppressed,
            "guided D": conditional + (cfg - 1) * without + dg * suppressed,
        }


def _run(session: ort.InferenceSession, given: dict[str, Any], outputs: list[str]) -> Any:
    names = [tensor.name for tensor in session.get_inputs()]
    return session.run(outputs, {name: given[name] for name in names})


def relative(got: Floats, want: Floats) -> float:
    """L2 of the difference over that of `want`."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


if __name__ == "__main__":
    main()
