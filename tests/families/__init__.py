"""Small random pipelines of the real diffusers classes, one file a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.families import (
    chroma,
    dit,
    flux,
    flux2,
    krea2,
    pixart_sigma,
    qwen_image,
    sd3,
    z_image,
)
from tests.families.parts import MAX_LENGTH

Kwargs = dict[str, Any]
TEXT = {"max_sequence_length": MAX_LENGTH}
CHAT = {"max_sequence_length": 40}  # of which the chat template takes about 20


@dataclass(frozen=True)
class Family:
    """A pipeline to export and to compare with.

    `call`: arguments of diffusers' own call besides prompt, size, steps and generator. `cfg` is its
    argument for true guidance. `unguided` is the value that means no guidance: 1, or 0 where the
    scale is cfg_scale - 1. `negative` names the transformer's arguments that differ in the
    unconditional branch. `image_tokens` is where they are in a block's sequence.
    `rescales`: it scales the result of its guidance, token by token, to the norm of the conditional
    prediction. `img2img` is diffusers' pipeline class for that, if any. `negative_embeds`: its call
    takes a negative prompt as embeddings only.
    """

    make: Callable[[], Any]
    negative: tuple[str, ...]
    cfg: str
    call: Kwargs = field(default_factory=dict)
    width: int = 48
    rescales: bool = False
    img2img: str | None = None
    negative_embeds: bool = False
    unguided: float = 1.0
    image_tokens: slice = field(default_factory=lambda: slice(None))

    @property
    def by_class(self) -> bool:
        return "class_labels" in self.negative


_JOINT = ("encoder_hidden_states", "pooled_projections")


def _sd3(make: Callable[[], Any]) -> Family:
    return Family(make, _JOINT, "guidance_scale", TEXT, img2img="StableDiffusion3Img2ImgPipeline")


def _flux(make: Callable[[], Any]) -> Family:
    distilled = {"guidance_scale": 3.5}  # image to image has another default
    return Family(make, _JOINT, "true_cfg_scale", TEXT | distilled, img2img="FluxImg2ImgPipeline")


FAMILIES = {
    "sd3": _sd3(sd3.make_pipeline),
    "sd3.5": _sd3(sd3.make_sd35),
    "flux-dev": _flux(flux.make_dev),
    "flux-schnell": _flux(flux.make_schnell),
    "flux-dedistilled": _flux(flux.make_dedistilled),
    "flux2-klein": Family(
        flux2.make_base,
        ("encoder_hidden_states",),
        "guidance_scale",
        CHAT,
        width=44,  # an odd number of tokens
        negative_embeds=True,
    ),
    "chroma": Family(
        chroma.make_pipeline,
        ("encoder_hidden_states", "attention_mask"),
        "guidance_scale",
        TEXT,
        img2img="ChromaImg2ImgPipeline",
    ),
    "dit": Family(dit.make_pipeline, ("class_labels",), "guidance_scale", width=32),
    "qwen-image": Family(
        qwen_image.make_pipeline,
        ("encoder_hidden_states", "encoder_hidden_states_mask"),
        "true_cfg_scale",
        TEXT,
        rescales=True,
        img2img="QwenImageImg2ImgPipeline",
    ),
    "pixart-sigma": Family(
        pixart_sigma.make_pipeline,
        ("encoder_hidden_states", "encoder_attention_mask"),
        "guidance_scale",
        TEXT | {"use_resolution_binning": False, "clean_caption": False},
    ),
    "z-image": Family(
        z_image.make_pipeline,
        ("cap_feats",),
        "guidance_scale",
        {"max_sequence_length": z_image.MAX_LENGTH},
        width=z_image.WIDTH,
        img2img="ZImageImg2ImgPipeline",
        unguided=0.0,
        image_tokens=slice(z_image.TOKENS),
    ),
    "krea2": Family(
        krea2.make_base,
        ("encoder_hidden_states", "encoder_attention_mask"),
        "guidance_scale",
        TEXT,
        unguided=0.0,
        image_tokens=slice(MAX_LENGTH, None),
    ),
}
