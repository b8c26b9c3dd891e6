"""The models that are measured, and their files: sources, bundles and the peers' plain graph."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from benchmarks.bench.plain import export_plain
from intaglio_export.adapters import Adapter
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from intaglio_export.sources import open_source
from tests.families.parts import (
    make_clip,
    make_clip_tokenizer,
    make_t5,
    make_t5_tokenizer,
    make_vae,
)

ROOT = Path(__file__).parents[2]
HEADS, HEAD = 12, 64
JOINT, POOLED = 1024, 768
PLANTED = 7  # a channel that is made massive, so that its suppression shows
_SIDE = 16  # image tokens along a side


def make_sd3(blocks: int = 12) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 of half medium's depth and width, with small text encoders and VAE."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=2 * _SIDE,
        patch_size=2,
        in_channels=4,
        num_layers=blocks,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=JOINT,
        caption_projection_dim=HEADS * HEAD,
        pooled_projection_dim=POOLED,
        out_channels=4,
        pos_embed_max_size=64,
    ).eval()
    plant(transformer.pos_embed.proj.bias)
    first, second = make_clip_tokenizer(), make_clip_tokenizer("!")
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=make_clip(first, POOLED // 3, "quick_gelu"),
        tokenizer=first,
        text_encoder_2=make_clip(second, POOLED - POOLED // 3, "gelu"),
        tokenizer_2=second,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def make_flux(double: int = 6, single: int = 12) -> FluxPipeline:
    """FLUX.1 with its distillation undone, a quarter of its width, a third of its depth."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=JOINT,
        pooled_projection_dim=POOLED,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    ).eval()
    plant(transformer.x_embedder.bias)
    clip, t5 = make_clip_tokenizer(), make_t5_tokenizer()
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=make_vae(scaling_factor=0.36, shift_factor=0.11),
        text_encoder=make_clip(clip, POOLED, "quick_gelu", projected=False),
        tokenizer=clip,
        text_encoder_2=make_t5(t5, JOINT),
        tokenizer_2=t5,
    )


@torch.no_grad()
def plant(bias: torch.nn.Parameter) -> None:
    """Make PLANTED massive on every image token."""
    bias[PLANTED] += 40.0


@dataclass(frozen=True)
class Model:
    """A model and where its files are kept between runs.

    `make` gives its pipeline, or `folder` is where that is saved already. `tokens` are the image's,
    along a side, and `text_tokens` the prompt's.
    """

    name: str
    work: Path
    make: Callable[[], Any] | None = None
    folder: Path | None = None
    tokens: int = _SIDE
    text_tokens: int = 77

    @cached_property
    def files(self) -> Path:
        """The folder of this model made by these sources; those of other sources are deleted."""
        sources = [*sorted((ROOT / "export").rglob("*.py")), *Path(__file__).parent.glob("*.py")]
        made_by = [path for path in sources if path.name in _MAKERS or "export" in path.parts]
        digest = hashlib.sha256(f"{diffusers.__version__} {torch.__version__}".encode())
        for path in made_by:
            digest.update(path.read_bytes())
        folder = self.work / self.name / digest.hexdigest()[:16]
        for other in (self.work / self.name).glob("*"):
            if other != folder:
                shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def source(self) -> Path:
        """The pipeline's folder, as diffusers saves it."""
        if self.folder is not None:
            return self.folder
        assert self.make is not None
        folder = self.files / self.name
        if not (folder / "model_index.json").exists():
            self.make().save_pretrained(folder)
        return folder

    @cached_property
    def adapter(self) -> Adapter:
        """The pipeline as torch runs it, text encoders included."""
        return open_source(self.source).adapter

    @property
    def blocks(self) -> int:
        return len(self.adapter.blocks())

    def bundle(self, layout: str, block: int) -> Path:
        """Its bundle with the op after `block`, without text encoders."""
        folder = self.files / f"{layout}-{block}"
        if not folder.exists():
            print(f"exporting {self.name}, {layout}, block {block}", flush=True)
            request = ExportRequest(
                self.source,
                folder,
                layout=layout,
                block=block,
                channels=str(PLANTED),
                text_encoders="none",
            )
            export_bundle(request)
        return folder

    def plain(self, block: int) -> Path:
        """The graph that other runtimes run, of `PlainTransformer`."""
        path = self.files / f"plain-{block}" / "model.onnx"
        if not path.exists():
            print(f"exporting {self.name}, plain", flush=True)
            path.parent.mkdir(exist_ok=True)
            export_plain(self.adapter, block, PLANTED, self.text_tokens, path)
        return path


_MAKERS = ("models.py", "plain.py")


def models(work: Path) -> dict[str, Model]:
    """The models of docs/performance.md, by name."""
    shipped = ROOT / "models/fashion-sd3"
    known = [
        Model("mid-sd3", work, make_sd3),
        Model("mid-flux", work, make_flux),
        Model("fashion-sd3", work, folder=shipped, tokens=8, text_tokens=32),
    ]
    return {model.name: model for model in known}
