"""Draw a bundle in every way that the loop has, on one device, for comparison with another.

`python -m tests.device_runs BUNDLE DEVICE LIBRARY OUT.npz` writes the final latents of each way,
by name. It runs in a process of its own, because a process holds one library of ONNX Runtime.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import intaglio

PROMPT, STEPS = "the dark boot", 3
UPPER = np.repeat(np.array([255, 0], np.uint8), 16)[:, None].repeat(32, axis=1)
MODES: dict[str, dict[str, Any]] = {
    "no guidance": {"cfg_scale": 1.0, "dg_scale": 0.0},
    "CFG": {"cfg_scale": 3.0, "dg_scale": 0.0},
    "DG": {"cfg_scale": 1.0, "dg_scale": 1.5},
    "CFG and DG": {"cfg_scale": 3.0, "dg_scale": 1.5, "batch": 2},
    "windows and ramps": {
        "cfg_scale": (4.0, 2.0),
        "cfg_window": (0.0, 0.7),
        "dg_scale": (0.5, 1.5),
        "dg_window": (0.3, 1.0),
        "ma_keep": (0.0, 0.8),
    },
    "reuse": {"cfg_scale": 3.0, "dg_scale": 1.0, "reuse_interval": 2, "reuse_window": (0.0, 1.0)},
    "skipped layers": {"slg_layers": [0, 2], "slg_window": (0.0, 1.0), "cfg_scale": 3.0},
    "a masked term, and keep by timestep": {
        "cfg_scale": 3.0, "dg_scale": 1.5, "ma_keep": (0.2, 1.5), "ma_keep_by": "timestep",
        "ma_tokens": UPPER, "dg_region": "mask",
    },
    "skipped steps": {"dg_scale": 1.0, "skip_interval": 2, "skip_tolerance": 10.0, "steps": 5},
}  # fmt: skip

# Samplers and rules, which do not depend on the layout, and what layout dual lacks.
FORKED: dict[str, dict[str, Any]] = {
    "Heun": {"cfg_scale": 3.0, "dg_scale": 1.0, "scheduler": "heun", "steps": 2},
    "UniPC": {"cfg_scale": 3.0, "dg_scale": 1.0, "scheduler": "unipc"},
    "DPM++ 2M SDE": {"cfg_scale": 3.0, "scheduler": "dpmpp-2m-sde", "batch": 2},
    "CFG-Zero*": {"guidance": "cfg-zero", "cfg_scale": 3.0, "dg_scale": 1.0, "batch": 2},
    "TCFG, rescaled": {"guidance": "tcfg", "guidance_rescale": 0.7, "cfg_scale": 3.0},
    "MAMBO-G, TAG, SG-prev and a list": {
        "guidance": "mambo-g", "guidance_tag": 1.2, "guidance_prev": 0.5,
        "cfg_scale": [3.0, 1.5, 2.0], "dg_scale": 1.0,
    },
    "APG and skipped steps": {
        "guidance": "apg", "guidance_norm_threshold": 4.0, "cfg_scale": 3.0, "skip_interval": 2,
        "skip_tolerance": 10.0, "steps": 5,
    },
    "S2-Guidance, CFG normalized": {
        "slg_share": 0.4, "cfg_scale": 3.0, "guidance_normalization": 0.8,
    },
    "transport": {
        "cfg_scale": 3.0, "batch": 2, "transport_from": "a shoe", "ma_tokens": UPPER,
        "dg_window": (0.0, 0.7),
    },
}  # fmt: skip


def with_callback(pipeline: intaglio.Pipeline) -> np.ndarray:
    """Let a step callback write the latents."""

    def halve(step: intaglio.Step) -> None:
        if step.step == 0:
            step.latents[...] *= 0.5

    drawn = pipeline.generate(
        PROMPT, steps=STEPS, seeds=2, cfg_scale=3.0, dg_scale=1.0, on_step=halve
    )
    return np.asarray(drawn.latents)


def from_an_image(pipeline: intaglio.Pipeline) -> np.ndarray:
    """Draw from an image, which the VAE encodes."""
    side = pipeline.bundle.defaults.height
    ramp = np.linspace(0, 255, side * side * 3, dtype=np.uint8).reshape(side, side, 3)
    drawn = pipeline.generate(
        PROMPT, steps=STEPS, image=Image.fromarray(ramp), strength=0.7, cfg_scale=3.0
    )
    return np.asarray(drawn.latents)


def inpainted(pipeline: intaglio.Pipeline, **options: Any) -> np.ndarray:
    """Draw the upper left part of an image anew."""
    side = pipeline.bundle.defaults.height
    ramp = np.linspace(0, 255, side * side * 3, dtype=np.uint8).reshape(side, side, 3)
    mask = np.zeros((side, side), np.uint8)
    mask[: side // 2, : side // 2] = 255
    drawn = pipeline.generate(
        PROMPT, image=Image.fromarray(ramp), mask=mask, strength=0.9, seeds=[1, 2], cfg_scale=3.0,
        dg_scale=1.0, **options,
    )  # fmt: skip
    return np.asarray(drawn.latents)


def in_a_batch(pipeline: intaglio.Pipeline) -> dict[str, np.ndarray]:
    """Let members join and leave: each has its own guidance, mask, sampler and number of steps."""
    batch = intaglio.Batch(pipeline, 4)
    requests: list[dict[str, Any]] = [
        {"seeds": 1, "steps": 3, "cfg_scale": 3.0, "dg_scale": 1.0, "guidance": "apg",
         "ma_tokens": UPPER, "dg_region": "mask"},
        {"seeds": 2, "steps": 3, "cfg_scale": 1.0, "dg_scale": 0.0, "scheduler": "unipc"},
        {"seeds": 3, "steps": 2, "cfg_scale": 1.0, "dg_scale": 2.0, "ma_tokens": UPPER.T},
        {"seeds": 4, "steps": 3, "cfg_scale": 3.0, "dg_scale": 1.0, "guidance": "mambo-g",
         "scheduler": "dpmpp-2m-sde"},
    ]  # fmt: skip
    names: dict[int, str] = {}
    done: dict[str, np.ndarray] = {}
    while requests or len(batch):
        if requests:
            request = requests.pop(0)
            names[batch.add(prompt=PROMPT, **request)] = f"batch, seed {request['seeds']}"
        for step in batch.step():
            if step.done:
                done[names[step.id]] = np.asarray(step.finish().latents)
    return done


def main(bundle: str, device: str, library: str, out: str) -> None:
    """Draw everything and write it."""
    pipeline = intaglio.Pipeline.open(bundle, device=device, onnxruntime=library, threads=1)
    modes = MODES | FORKED if pipeline.bundle.layout == "forked" else MODES
    drawn = {
        name: np.asarray(pipeline.generate(PROMPT, seeds=5, **{"steps": STEPS, **mode}).latents)
        for name, mode in modes.items()
    }
    drawn["callback"] = with_callback(pipeline)
    drawn["image to image"] = from_an_image(pipeline)
    drawn["inpainting"] = inpainted(pipeline, steps=STEPS)
    drawn["inpainting, skipped steps"] = inpainted(
        pipeline, steps=6, skip_interval=2, skip_tolerance=10.0, scheduler="heun"
    )
    np.savez(Path(out), **drawn, **in_a_batch(pipeline))


if __name__ == "__main__":
    main(*sys.argv[1:])
