"""Run diffusers' own pipelines with the three-branch formula in place of their guidance.

The pipeline runs as it is: its own prompts, noise, packing, schedule and loop. Only the
transformer's forward is exchanged for one that combines D_c, D_0 and D_m, the last by a hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.modeling_outputs import AutoencoderKLOutput, Transformer2DModelOutput
from PIL import Image

from tests.families import Family

PROMPT, NEGATIVE = "the dark boot and THE rest", "a shoe"
CLASS = 5
SEED, STEPS, IMAGES, HEIGHT = 5, 4, 2, 32
STRENGTH = 0.6


@dataclass(frozen=True)
class Run:
    """The final latents as the scheduler leaves them, and uint8 images [N, H, W, 3]."""

    latents: torch.Tensor
    images: np.ndarray


@torch.no_grad()
def guided_run(
    pipeline: Any,
    family: Family,
    cfg_scale: float,
    dg_scale: float,
    block: int,
    channels: list[int],
) -> Run:
    """Draw `IMAGES` images by D = s (D_c + (cfg - 1)(D_c - D_0)) + dg (D_c - D_m).

    s is 1, or where the family rescales |D_c| over the norm of what it scales, for each token.
    """
    arguments = _arguments(pipeline, family)
    negative = _conditioning(pipeline, family) if cfg_scale != 1.0 else {}
    rescale = _rescaled if family.rescales else lambda guided, conditional: guided
    with _guided(pipeline, family, negative, cfg_scale, dg_scale, block, channels, rescale):
        return _run(pipeline, arguments | {family.cfg: family.unguided})


@torch.no_grad()
def native_run(pipeline: Any, family: Family, cfg_scale: float) -> Run:
    """Draw `IMAGES` images with the pipeline's own classifier-free guidance."""
    arguments = _arguments(pipeline, family) | {family.cfg: family.unguided + cfg_scale - 1.0}
    if family.negative_embeds:
        encoded = pipeline.encode_prompt(NEGATIVE, **family.call)
        arguments["negative_prompt_embeds"] = encoded[0]
    elif not family.by_class:
        arguments["negative_prompt"] = NEGATIVE
    run = _run(pipeline, arguments)
    return Run(run.latents[:IMAGES], run.images)  # DiT's latents hold both halves of a batch


@torch.no_grad()
def run_from_image(pipeline: Any, family: Family, image: Image.Image, seeds: list[int]) -> Run:
    """Run diffusers' own image-to-image pipeline from the mean of the VAE's posterior."""
    assert family.img2img is not None
    img2img = getattr(diffusers, family.img2img)(**pipeline.components)
    arguments = _arguments(pipeline, family) | {family.cfg: family.unguided}
    arguments |= {
        "image": [image] * len(seeds),
        "strength": STRENGTH,
        "num_images_per_prompt": len(seeds),
    }
    arguments["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with _mean_of_posterior(pipeline):
        return _run(img2img, arguments)


# What diffusers' pipelines read in the transformer's configuration: one blends latents of 16
# channels only, and the other asks for a field that its transformer does not have.
_EXPECTED: dict[str, dict[str, Any]] = {
    "StableDiffusion3InpaintPipeline": {"in_channels": 16},
    "ChromaInpaintPipeline": {"guidance_embeds": False},
}


def a_mask(height: int, width: int) -> np.ndarray:
    """Return a mask with a white part and with grey ones on both sides of the limit."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[5 : height - 9, 9 : width - 14] = 255
    pixels[height - 6 :, :8] = 127
    pixels[height - 6 :, 8:16] = 128
    return pixels


@torch.no_grad()
def inpaint(pipeline: Any, name: str, output_type: str = "latent", **arguments: Any) -> Any:
    """Return the latents, or the images, of diffusers' own pipeline `name` of this one's parts."""
    inpainting = getattr(diffusers, name)(**pipeline.components)
    inpainting.set_progress_bar_config(disable=True)
    channels = pipeline.transformer.config.in_channels
    pipeline.transformer.register_to_config(**_EXPECTED.get(name, {}))
    try:
        with _mean_of_posterior(pipeline):
            return inpainting(**arguments, output_type=output_type).images
    finally:
        pipeline.transformer.register_to_config(in_channels=channels)


@torch.no_grad()
def guided_inpainting(
    pipeline: Any,
    family: Family,
    image: Image.Image,
    mask: np.ndarray,
    seeds: list[int],
    cfg_scale: float,
    dg_scale: float,
    block: int,
    channels: list[int],
    token_size: int,
) -> torch.Tensor:
    """Draw the white part of `mask` anew. D_m suppresses channels there only."""
    assert family.img2img is not None
    white = torch.from_numpy(mask / np.float32(255))[None]
    amount = torch.nn.functional.avg_pool2d(white, token_size).flatten()[:, None]
    negative = _conditioning(pipeline, family) if cfg_scale != 1.0 else {}
    rescale = _rescaled if family.rescales else lambda guided, conditional: guided
    with _guided(pipeline, family, negative, cfg_scale, dg_scale, block, channels, rescale, amount):
        arguments = _arguments(pipeline, family) | {family.cfg: family.unguided}
        arguments["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        return inpaint(
            pipeline,
            family.img2img.replace("Img2Img", "Inpaint"),
            **arguments,
            image=image,
            mask_image=Image.fromarray(mask),
            strength=STRENGTH,
        )


@torch.no_grad()
def run_with_references(
    pipeline: Any,
    family: Family,
    mode: tuple[float, float],
    block: int,
    channels: list[int],
    **arguments: Any,
) -> Run:
    """Draw beside the pictures `image` with the scales of CFG and DG. D_m suppresses channels of
    the tokens that are drawn, which come first."""
    cfg_scale, dg_scale = mode
    negative = _conditioning(pipeline, family) if cfg_scale != 1.0 else {}
    arguments = _arguments(pipeline, family) | {family.cfg: family.unguided} | arguments
    with _guided(pipeline, family, negative, cfg_scale, dg_scale, block, channels, _unchanged):
        return _run(pipeline, arguments)


def _unchanged(guided: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    return guided


@contextmanager
def _mean_of_posterior(pipeline: Any) -> Iterator[None]:
    """Let the VAE encode to the mean, where pipelines would sample with the noise's generator."""
    encode = pipeline.vae.encode

    def mean(*args: Any, **kwargs: Any) -> Any:
        posterior = encode(*args, **kwargs).latent_dist
        return AutoencoderKLOutput(latent_dist=_Mean(posterior.mean))

    pipeline.vae.encode = mean
    try:
        yield
    finally:
        del pipeline.vae.encode


@torch.no_grad()
def run_with_seeds(pipeline: Any, family: Family, seeds: list[int]) -> Run:
    """Run without guidance, with one seed for each image."""
    arguments = _arguments(pipeline, family) | {family.cfg: family.unguided}
    arguments["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return _run(pipeline, arguments)


@torch.no_grad()
def run_of_prompts(
    pipeline: Any, family: Family, prompts: list[str], seeds: list[int], cfg_scale: float = 1.0
) -> Run:
    """Draw an image of each prompt with its seed, all in one batch."""
    arguments = _arguments(pipeline, family) | {
        family.cfg: family.unguided + cfg_scale - 1,
        "num_images_per_prompt": 1,
    }
    if cfg_scale > 1:
        arguments["negative_prompt"] = [NEGATIVE] * len(prompts)
    arguments["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return _run(pipeline, arguments | {"prompt": prompts})


@dataclass(frozen=True)
class _Mean:
    mean: torch.Tensor

    def sample(self, generator: Any = None) -> torch.Tensor:
        return self.mean

    def mode(self) -> torch.Tensor:
        return self.mean


def _arguments(pipeline: Any, family: Family) -> dict[str, Any]:
    arguments = dict(family.call) | {
        "num_inference_steps": STEPS,
        "generator": torch.Generator("cpu").manual_seed(SEED),
    }
    if family.by_class:
        return arguments | {"class_labels": [CLASS] * IMAGES}
    arguments |= {"height": HEIGHT, "width": family.width, "num_images_per_prompt": IMAGES}
    return arguments | {"prompt": PROMPT}


def _conditioning(pipeline: Any, family: Family) -> dict[str, Any]:
    """Return the transformer's arguments of D_0, which a run of NEGATIVE passes to it."""
    if family.by_class:
        null = pipeline.transformer.config.num_embeds_ada_norm
        return {"class_labels": torch.full((IMAGES,), null)}
    seen: dict[str, Any] = {}

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = signature(module.forward).bind(*args, **kwargs).arguments
        seen.update({name: given[name] for name in family.negative})

    handle = pipeline.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        arguments = _arguments(pipeline, family) | {"prompt": NEGATIVE, "num_inference_steps": 1}
        _run(pipeline, arguments | {family.cfg: family.unguided})
    finally:
        handle.remove()
    return seen


def _run(pipeline: Any, arguments: dict[str, Any]) -> Run:
    """Call the pipeline and keep the last latents of its scheduler."""
    pipeline.set_progress_bar_config(disable=True)
    step, made = pipeline.scheduler.step, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        made.append(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    pipeline.scheduler.step = watched
    try:
        images = pipeline(**arguments).images
    finally:
        del pipeline.scheduler.step
    return Run(made[-1], np.stack([np.asarray(image) for image in images]))


@contextmanager
def _guided(
    pipeline: Any,
    family: Family,
    negative: dict[str, Any],
    cfg_scale: float,
    dg_scale: float,
    block: int,
    channels: list[int],
    rescale: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    amount: torch.Tensor | float = 1.0,
) -> Iterator[None]:
    """`amount` is how far D_m suppresses the channels of each token, [tokens, 1]."""
    transformer = pipeline.transformer
    forward = transformer.forward

    def guided(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        def predict(**changes: Any) -> torch.Tensor:
            call = signature(forward).bind(*args, **kwargs, return_dict=False)
            call.arguments.update(changes)
            made = forward(*call.args, **call.kwargs)[0]
            return torch.stack(made) if isinstance(made, list) else made

        conditional = predict()
        result = conditional
        if cfg_scale != 1.0:
            result = result + (cfg_scale - 1.0) * (conditional - predict(**negative))
            result = rescale(result, conditional)
        if dg_scale != 0.0:
            with _suppressed(transformer, block, channels, family.image_tokens, amount):
                result = result + dg_scale * (conditional - predict())
        return Transformer2DModelOutput(sample=result) if return_dict else (result,)

    transformer.forward = guided
    try:
        yield
    finally:
        del transformer.forward


def _rescaled(guided: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    return guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


@contextmanager
def _suppressed(
    transformer: Any, block: int, channels: list[int], tokens: slice, amount: torch.Tensor | float
) -> Iterator[None]:
    """Zero `channels` of the image stream after `block`, counted through all kinds of blocks."""

    def zero(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[-1] if isinstance(output, tuple) else output).clone()
        hidden[:, tokens, channels] *= 1.0 - amount
        return (*output[:-1], hidden) if isinstance(output, tuple) else hidden

    blocks = [
        *getattr(transformer, "transformer_blocks", ()),
        *getattr(transformer, "layers", ()),
        *getattr(transformer, "single_transformer_blocks", ()),
    ]
    handle = blocks[block].register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()
