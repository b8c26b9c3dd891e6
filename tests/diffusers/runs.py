"""Runs the same request in diffusers and in the runtime, and finds hooks left on a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.modular_pipelines import StableDiffusion3AutoBlocks

import intaglio
from tests.families.parts import MAX_LENGTH

PROMPT, NEGATIVE = "the dark boot and THE rest", "a shoe"
SEED, STEPS, IMAGES, HEIGHT, WIDTH = 5, 5, 2, 32, 48
BLOCK, CHANNELS = 1, [7]
LIMIT = 1e-3

# Options of the runtime's `generate`; dg_scale 0 has to equal a pipeline without the guidance.
MODES: dict[str, dict[str, Any]] = {
    "baseline": {"cfg_scale": 1.0, "dg_scale": 0.0},
    "cfg": {"cfg_scale": 2.5, "dg_scale": 0.0},
    "dg": {"cfg_scale": 1.0, "dg_scale": 1.5},
    "cfg+dg": {"cfg_scale": 2.5, "dg_scale": 1.5},
    "window": {"cfg_scale": 2.5, "dg_scale": 1.5, "dg_window": (0.2, 0.8)},
    "keep": {"cfg_scale": 2.5, "dg_scale": 1.5, "ma_keep": (1.0, 0.2)},
}


def common() -> dict[str, Any]:
    """Return the arguments of a diffusers pipeline's call."""
    return {
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": STEPS,
        "num_images_per_prompt": IMAGES,
        "max_sequence_length": MAX_LENGTH,
        "generator": torch.Generator("cpu").manual_seed(SEED),
    }


def draw(pipe: Any, family_cfg: str, cfg_scale: float, **changes: Any) -> torch.Tensor:
    """Return the final latents of a classic pipeline."""
    pipe.set_progress_bar_config(disable=True)
    arguments = common() | {family_cfg: cfg_scale, "output_type": "latent"} | changes
    if cfg_scale != 1.0:
        arguments["negative_prompt"] = NEGATIVE
    latents: torch.Tensor = pipe(PROMPT, **arguments).images
    return latents


def expected(runtime: intaglio.Pipeline, **options: Any) -> torch.Tensor:
    """Return the final latents of the C++ runtime."""
    got = runtime.generate(
        PROMPT,
        negative_prompt=NEGATIVE,
        seeds=SEED,
        batch=IMAGES,
        steps=STEPS,
        height=HEIGHT,
        width=WIDTH,
        **options,
    )
    return torch.from_numpy(got.latents)


def modular(pipe: StableDiffusion3Pipeline, guider: Any) -> Any:
    """Make a modular pipeline of the same components."""
    made = StableDiffusion3AutoBlocks().init_pipeline()
    components = {k: v for k, v in pipe.components.items() if v is not None}
    made.update_components(
        **{k: v for k, v in components.items() if k in made.component_names}, guider=guider
    )
    made.set_progress_bar_config(disable=True)
    return made


def draw_modular(made: Any, **changes: Any) -> torch.Tensor:
    arguments = common() | {"prompt": PROMPT, "negative_prompt": NEGATIVE, "output": "latents"}
    latents: torch.Tensor = made(**arguments | changes)
    return latents


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def blocks(transformer: Any) -> list[torch.nn.Module]:
    single = getattr(transformer, "single_transformer_blocks", ())
    return [*transformer.transformer_blocks, *single]


def hooks_left(transformer: torch.nn.Module) -> list[str]:
    """Return all hooks of diffusers and of torch in the model."""
    found = []
    for name, module in transformer.named_modules():
        registry = getattr(module, "_diffusers_hook", None)
        found += [f"{name}: {hook}" for hook in (registry.hooks if registry else ())]
        found += [f"{name}: torch"] * len(module._forward_hooks)
        found += [f"{name}: torch"] * len(module._forward_pre_hooks)
    return found


@contextmanager
def counted(transformer: Any) -> Iterator[list[int]]:
    """Count the rows that go through each block's attention; a skipped block runs none."""
    rows = [0] * len(blocks(transformer))

    def watch(index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            rows[index] += len(kwargs["hidden_states"])

        return hook

    handles = [
        block.attn.register_forward_hook(watch(i), with_kwargs=True)
        for i, block in enumerate(blocks(transformer))
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
