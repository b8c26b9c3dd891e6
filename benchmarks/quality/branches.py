"""What low precision does to the differences of branches, on latents of float32 runs.

Errors are relative L2 errors of the prompt's embeddings, of the prediction D_c, of D_c - D_0, of
D_c - D_m and of the guided D with the scales of the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

import intaglio

# Of a run: the shares at which latents and timestep are taken.
TAKEN = (0.125, 0.375, 0.5, 0.625, 0.875)
Floats = NDArray[np.float32]
Errors = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Point:
    """Latents [1, C, h, w] of a float32 run, their timestep, and the prompt."""

    latents: Floats
    timestep: float
    prompt: str


def branch_errors(
    exact: Path, variants: Mapping[str, Path], prompts: Sequence[str], seeds: int, steps: int
) -> dict[str, Errors]:
    """Return for each variant the mean and the largest error over all points of `seeds` runs."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    reference = Network(exact)
    networks = {name: Network(path) for name, path in variants.items()}
    for point in _points(reference, prompts, seeds, steps):
        want = reference.branches(point)
        for name, network in networks.items():
            got = network.branches(point)
            found[name].append({of: relative(got[of], want[of]) for of in want})
    return {
        name: {
            of: {"mean": float(np.mean(values)), "largest": float(np.max(values))}
            for of in errors[0]
            for values in ([error[of] for error in errors],)
        }
        for name, errors in found.items()
    }


def _points(exact: Network, prompts: Sequence[str], seeds: int, steps: int) -> list[Point]:
    """Return the points at `TAKEN` of runs with guidance; each seed has a prompt."""
    points = []
    for seed in range(seeds):
        prompt = prompts[seed * len(prompts) // seeds]
        seen: list[tuple[Floats, float]] = []
        exact.pipeline.generate(
            prompt,
            steps=steps,
            seeds=seed,
            on_step=lambda step, seen=seen: seen.append((step.latents.copy(), step.timestep)),
        )
        # A step is shown with the latents that it made, from which the next one starts.
        for step in sorted({max(int(share * steps), 1) for share in TAKEN}):
            points.append(Point(seen[step - 1][0], seen[step][1], prompt))
    return points


class Network:
    """The text encoders of a forked bundle, and its transformer in ONNX Runtime's own package."""

    def __init__(self, bundle: Path) -> None:
        self.pipeline = intaglio.Pipeline.open(bundle, device="cpu", threads=1)
        manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        graphs = manifest["transformer"]["graphs"]
        self._conditioning, self._forked = (
            ort.InferenceSession(
                bundle / graphs[name].get("cpu", graphs[name]["path"]),
                options,
                ["CPUExecutionProvider"],
            )
            for name in ("conditioning", "forked")
        )
        self._defaults = manifest["defaults"]
        self._mask = np.zeros(manifest["transformer"]["channels"], np.float32)
        self._mask[manifest["massive_activations"]["channels"]] = 1.0

    def branches(self, point: Point) -> dict[str, Floats]:
        """Return the embeddings, D_c, its differences from the other branches, and the guided D."""
        embeds = self.pipeline.embed(point.prompt, "")
        pairs = {
            "text": (embeds.negative_prompt_embeds, embeds.prompt_embeds),
            "pooled": (embeds.negative_pooled_prompt_embeds, embeds.pooled_prompt_embeds),
        }
        given: dict[str, Any] = {
            role: np.concatenate([np.asarray(part) for part in pair])
            for role, pair in pairs.items()
        }
        given["timestep"] = np.full(2, point.timestep, np.float32)
        text = given["text"]
        modulation, context = _run(self._conditioning, given, ["modulation", "context"])
        given |= {"modulation": modulation, "context": context, "mask": self._mask}
        given["latent"] = np.repeat(point.latents, 2, axis=0)
        given["ref"] = np.zeros_like(self._mask)
        tokens = point.latents.shape[2] * point.latents.shape[3] // 4  # of patches of 2 x 2
        given["keep"] = np.repeat(np.array([[1], [1], [0]], np.float32), tokens, axis=1)
        given["source"] = np.zeros(given["keep"].shape, np.int64)
        given["branch"], given["anchor"] = np.array([0, 1, 1]), np.array([1, 1])
        [(unconditional, conditional, degraded)] = _run(self._forked, given, ["prediction"])
        cfg, dg = (self._defaults[name] for name in ("cfg_scale", "dg_scale"))
        without, suppressed = conditional - unconditional, conditional - degraded
        return {
            "embeddings": text,
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
