"""From a bundle and a prompt to images."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio import _core
from intaglio.onnxruntime_library import onnxruntime_library
from intaglio.progress import OnStep, progress_bar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Picture = Image | NDArray[np.uint8]

# A constant, or a value that goes linearly from the first step to the last.
Ramp = float | tuple[float, float]
# Part of a run: step i of N is inside (start, end) when start <= i / N < end.
Window = tuple[float, float]

# Of what the core's generate() returns, what goes into Generation as it is.
_SAME = (
    "latents", "timings", "step_seconds", "base_rows", "forked_rows", "loop",
    "unconditional_steps", "degraded_steps",
)  # fmt: skip


def core_options(options: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `Pipeline.generate` as the core takes them: embeddings are loaded."""
    embeds = options.get("prompt_embeds")
    if isinstance(embeds, str | os.PathLike):
        return options | {"prompt_embeds": _core.PromptEmbeds.load(os.fspath(embeds))}
    return options


@dataclass(frozen=True, eq=False, repr=False)
class Generation:
    """What `Pipeline.generate` returns.

    Attributes:
        images: N Pillow images, RGB.
        latents: float32 as the scheduler leaves them, before the VAE's scaling is undone:
            [N, C, h, w], or [N, tokens, C * patch_size^2] where the bundle packs them as FLUX
            does. `generate(latents=...)` takes the same layout.
        timings: seconds of each stage: text, denoise, vae, total; and network, the part of
            denoise that the transformer's graphs took.
        step_seconds: seconds of each step, without the step callback.
        base_rows: batch rows that ran through blocks 0..m, summed over the run.
        forked_rows: batch rows that ran through the blocks after m, likewise.
        loop: allocations and copies that the denoising loop asked its device's memory for.
        unconditional_steps: the steps that ran D_0.
        degraded_steps: the steps that ran D_m.
        texts: for each image, what its PNG says about it (`save` writes this).
    """

    images: list[Image]
    latents: NDArray[np.float32]
    timings: _core.Timings
    step_seconds: list[float]
    base_rows: int
    forked_rows: int
    loop: _core.StreamCounts
    unconditional_steps: list[int]
    degraded_steps: list[int]
    texts: list[dict[str, str]]

    @classmethod
    def of(
        cls, result: _core.Generation, bundle: _core.Bundle, options: dict[str, Any]
    ) -> Generation:
        """What the core made of `options`. Warns of its notes, in the name of the caller's."""
        for note in result.notes:
            warnings.warn(note, stacklevel=3)
        images = result.images
        return cls(
            images=images,
            **{name: getattr(result, name) for name in _SAME},
            texts=[dict(_core.png_text(bundle, options, i)) for i in range(len(images))],
        )

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes the images as PNG with their options inside, as `intaglio generate -o` does.

        One image goes to `path` itself; several become NAME-0.png, NAME-1.png, ... Returns the
        paths. Raises InputError when one cannot be written.
        """
        target = Path(path)
        paths = [target]
        if len(self.images) > 1:
            names = (f"{target.stem}-{i}{target.suffix}" for i in range(len(self.images)))
            paths = [target.with_name(name) for name in names]
        for one, image, text in zip(paths, self.images, self.texts, strict=True):
            _core.write_png(one, image, list(text.items()))
        return paths

    def __repr__(self) -> str:
        width, height = self.images[0].size
        return (
            f"<Generation: {len(self.images)} of {width}x{height},"
            f" latents {list(self.latents.shape)}, {self.timings}>"
        )

    def _repr_png_(self) -> bytes:
        """The images side by side, for notebooks."""
        from PIL import Image

        width, height = self.images[0].size
        row = Image.new("RGB", (width * len(self.images), height))
        for i, image in enumerate(self.images):
            row.paste(image, (i * width, 0))
        buffer = io.BytesIO()
        row.save(buffer, "PNG")
        return buffer.getvalue()


class Pipeline:
    """A bundle, loaded. Several threads may generate from one pipeline at once; each gets what it
    would get alone."""

    def __init__(self, core: _core.Pipeline) -> None:
        """Use `Pipeline.open`."""
        self._core = core

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int = 0,
        onnxruntime: str | os.PathLike[str] | None = None,
        prepack: bool = False,
    ) -> Pipeline:
        """Opens the folder that `intaglio export` wrote.

        Args:
            bundle: the folder; every file's size and SHA-256 is checked against its manifest.
            device: where to run: cpu; cuda or ort-tensorrt (ONNX Runtime's providers); auto: cuda
                where it works, else cpu. Warns when a GPU, or engines that the bundle has, are
                not used. tensorrt-rtx and tensorrt are refused: engines can be built but not yet
                run.
            threads: threads to run with; 0: one per logical core.
            onnxruntime: ONNX Runtime's library; None: that of Python's onnxruntime package, or
                the system's.
            prepack: whether weights of the loop's graphs, float32 or quantised, are packed for the
                processor when they are loaded, not in each step: quicker steps, a slower start,
                and memory of this process's own in place of the mapped file, which processes
                share. Where ONNX Runtime runs them on the CPU; ignored elsewhere. Latents differ
                by rounding.

        Raises:
            UsageError: there is no device of that name.
            InputError: a file of the bundle is missing, truncated, tampered with or newer than
                this version understands.
            UnavailableError: the device or ONNX Runtime is not there.
        """
        library = onnxruntime or onnxruntime_library() or ""
        options = _core.BackendOptions(
            device=device,
            threads=threads,
            onnxruntime_library=os.fspath(library),
            prepack=prepack,
        )
        core = _core.Pipeline.open(os.fspath(bundle), options)
        if core.choice.note:
            warnings.warn(
                f"running on {core.choice.device}, since {core.choice.note}", stacklevel=2
            )
        return cls(core)

    @property
    def bundle(self) -> _core.Bundle:
        """What the bundle's manifest says."""
        return self._core.bundle

    @property
    def backend(self) -> str:
        """What the graphs run on: "ONNX Runtime 1.32.0, cpu, 2 threads"."""
        return self._core.backend

    @property
    def device(self) -> str:
        """The device that they run on; what was taken for auto."""
        return self._core.choice.device

    def embed(self, prompt: str, negative_prompt: str | None = None) -> _core.PromptEmbeds:
        """What the text encoders make of a prompt, for `generate(prompt_embeds=...)`.

        With CFG that needs the negative prompt too: "" is the default of `generate`. Warns about
        a prompt that is longer than an encoder reads.

        Raises:
            UsageError: the bundle has no text encoders.
            InputError: a prompt with lone surrogates.
        """
        embeds = self._core.embed(prompt, negative_prompt)
        for note in embeds.notes:
            warnings.warn(note, stacklevel=2)
        return embeds

    def generate(
        self,
        prompt: str | None = None,
        *,
        class_label: int | None = None,
        negative_prompt: str = "",
        steps: int | None = None,
        seeds: int | Sequence[int] = 0,
        batch: int = 1,
        height: int | None = None,
        width: int | None = None,
        cfg_scale: Ramp | None = None,
        cfg_window: Window | None = None,
        distilled_guidance: float | None = None,
        dg_scale: Ramp | None = None,
        dg_window: Window | None = None,
        ma_keep: Ramp | None = None,
        ma_channels: Sequence[int] = (),
        reuse_interval: Ramp | None = None,
        reuse_window: Window | None = None,
        scheduler: str | None = None,
        strength: float | None = None,
        vae_tile: int = 1024,
        image: Picture | None = None,
        latents: Any = None,
        ma_tokens: Picture | None = None,
        prompt_embeds: _core.PromptEmbeds | str | os.PathLike[str] | None = None,
        on_step: OnStep | None = None,
        progress: bool = False,
    ) -> Generation:
        """Draws images: D = D_c + (cfg_scale - 1)(D_c - D_0) + dg_scale (D_c - D_m).

        What is None comes from the bundle's defaults. Sizes are pixels. A scale or `ma_keep` may
        be a pair: it then goes linearly from the first step to the last.

        Args:
            prompt: what to draw. One of prompt, class_label and prompt_embeds is needed.
            class_label: the class to draw, for bundles that are drawn by class.
            negative_prompt: what the unconditional branch D_0 is asked for instead of nothing.
            steps: denoising steps.
            seeds: one seed for the whole batch, or one for each image; the noise is that of
                torch.Generator("cpu").manual_seed(seed).
            batch: images drawn from one seed.
            height: image height. width: image width.
            cfg_scale: classifier-free guidance, 1 + lambda; 1 is off and saves a branch.
            cfg_window: part of the run with it: step i of N when start <= i / N < end.
            distilled_guidance: guidance that the transformer was distilled with and takes as an
                input (FLUX.1-dev); refused for others.
            dg_scale: Detail Guidance (arXiv 2510.11538); 0 is off and saves a branch.
            dg_window: part of the run with it.
            ma_keep: how much of the massive channels D_m keeps: 0 none, 1 all.
            ma_channels: channels to suppress instead of the bundle's.
            reuse_interval: run D_0 and D_m every so many steps only, extrapolating D_c - D_0 and
                D_c - D_m in between: not exact. `intaglio.analysis.reuse` finds an interval.
            reuse_window: the part of the run with it; all of it if None.
            scheduler: euler, heun or dpmpp-2m; ddim or dpmpp-2m for a model that predicts epsilon.
            strength: how much of `image` is forgotten, 0.6 unless given: 1 all of it.
            vae_tile: larger images are decoded in overlapping tiles of this size.
            image: start from this picture (Pillow, or uint8 [H, W] or [H, W, 3]).
            latents: float32 in the layout of `Generation.latents` in place of noise: anything
                with __dlpack__, in C order.
            ma_tokens: where Detail Guidance acts: white suppresses, black leaves alone.
                Averaged per token, so it needs a pixel per token at least.
            prompt_embeds: what `embed` returned or its file, in place of texts.
            on_step: called after each step with a `Step`; returning False stops the run. What it
                raises is raised here. `step.latents` is the run's own memory: copy what you keep.
                Of a bundle exported with --observe, `step.hidden_states(k)` is the image stream
                after block k and `step.gate(k)` the block's gate, both copies.
            progress: show a progress bar.

        Raises:
            UsageError: options that make no sense, like steps 0 (also a ValueError).
            InputError: a prompt, picture or array that cannot be used (also a ValueError).
            Interrupted: `on_step` returned False. Ctrl-C raises KeyboardInterrupt within a step.
            OutOfMemoryError: also a MemoryError.
        """
        options = {k: v for k, v in locals().items() if k not in {"self", "on_step", "progress"}}
        options = core_options(options)
        with progress_bar(on_step) if progress else nullcontext(on_step) as report:
            result = self._core.generate(report, **options)
        return Generation.of(result, self.bundle, options)

    def __repr__(self) -> str:
        found = self.bundle.massive_activations
        shown = ", ".join(map(str, found.channels[:8])) + (", ..." if found.channels[8:] else "")
        return (
            f"<Pipeline {self.bundle.name}: {self.bundle.family}, {self.bundle.layout},"
            f" {self.bundle.blocks} blocks of {self.bundle.hidden_size} channels;"
            f" suppresses {shown} after block {found.block};"
            f" {self.bundle.defaults}; {self.backend}>"
        )
