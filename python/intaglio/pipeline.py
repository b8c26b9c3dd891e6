"""Draw images from a bundle and a prompt."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from intaglio import _core
from intaglio.image_file import check_ending, write_image
from intaglio.keywords import suggesting
from intaglio.onnxruntime_library import onnxruntime_library
from intaglio.progress import OnStep, progress_bar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Picture = Image | NDArray[np.uint8]

# A constant, a pair of values between which it changes linearly from the first step to the last, or
# a value for each step.
Ramp = float | Sequence[float]
# A part (start, end) of the run. Step i of N is inside if start <= i / N < end.
Window = tuple[float, float]

# The attributes of the core's Generation that are taken over unchanged.
_SAME = (
    "images", "latents", "timings", "step_seconds", "base_rows", "forked_rows", "loop",
    "unconditional_steps", "degraded_steps", "evaluations", "skipped_steps", "largest_distance",
    "notes",
)  # fmt: skip


def warn(notes: list[str], depth: int = 2) -> None:
    """Warn of each note where the caller's caller called, or one further out at depth 3."""
    frame = sys._getframe(depth)
    for note in notes:
        # With a registry of its own each warning is shown. Python's default filter would show the
        # same sentence only once for each line of the caller.
        warnings.warn_explicit(
            note, UserWarning, frame.f_code.co_filename, frame.f_lineno,
            module=frame.f_globals.get("__name__"), registry={},
        )  # fmt: skip


def core_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return keywords of `Pipeline.generate` for the core. Embeddings are loaded from a file."""
    embeds = options.get("prompt_embeds")
    if isinstance(embeds, str | os.PathLike):
        return options | {"prompt_embeds": _core.PromptEmbeddings.load(os.fspath(embeds))}
    return options


def validate(bundle: _core.Bundle, **options: Any) -> list[_core.Problem]:
    """Return what is wrong with a request, without running it.

    The keywords are those of `Pipeline.generate` except on_step and progress. Each problem has a
    `field` and a `message`. The problems are in the order in which `generate` checks them; there
    are none if `generate` would start to run.

    Raises:
        UsageError: a value has the wrong type, or there is no such keyword.
        InputError: a picture, an array or a file of embeddings cannot be read.
    """
    return _core.validate(bundle, core_options(options))


@dataclass(frozen=True, eq=False, repr=False)
class Generation:
    """What `Pipeline.generate` returns.

    Attributes:
        images: N Pillow images, RGB.
        latents: float32 as the scheduler leaves them, before the VAE's scaling is undone:
            [N, C, h, w], or [N, tokens, C * patch_size^2] if the bundle packs them as FLUX does.
            `generate(latents=...)` takes the same layout.
        timings: seconds of each stage (text, denoise, vae), their total, and network, the part of
            denoise that the transformer's graphs take.
        step_seconds: seconds of each step, without the step callback.
        base_rows, forked_rows: batch rows that ran through blocks 0..m, and m + 1.., of all steps.
        loop: allocations and copies of the denoising loop.
        unconditional_steps, degraded_steps: the steps that ran D_0, and those that ran D_m.
        evaluations: how often the model ran. Heun's method runs it twice in a step.
        skipped_steps: the steps that did not run it.
        largest_distance: |D' - D| / |D|, where D is the first prediction after skipped steps and D'
            what the line through the two before them says of it: the largest of all images, 0
            without skipped steps.
        texts: the text entries for each image's PNG, which `save` writes.
        notes: what was also warned of: prompts that were cut, and guidance that was asked for but
            that no step uses.
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
    evaluations: int
    skipped_steps: list[int]
    largest_distance: float
    texts: list[dict[str, str]]
    notes: list[str]

    @classmethod
    def of(cls, result: _core.Generation) -> Generation:
        """Convert the core's result."""
        same = {name: getattr(result, name) for name in _SAME}
        return cls(texts=[dict(entries) for entries in result.texts], **same)

    def save(self, path: str | os.PathLike[str], *, metadata: bool = True) -> list[Path]:
        """Write the images with `texts` inside, unless `metadata` is False.

        The ending of the name chooses the format: .png, as `intaglio generate -o` writes it, or
        .jpg, .jpeg or .webp, with the texts in EXIF. One image goes to `path` itself; several
        become NAME-0.png, NAME-1.png, ... Returns the paths.

        Raises:
            UsageError: the name has another ending.
            InputError: a file cannot be written.
        """
        target = Path(path)
        check_ending(target)
        paths = [target]
        if len(self.images) > 1:
            names = (f"{target.stem}-{i}{target.suffix}" for i in range(len(self.images)))
            paths = [target.with_name(name) for name in names]
        for one, image, text in zip(paths, self.images, self.texts, strict=True):
            write_image(one, image, text if metadata else {})
        return paths

    def __repr__(self) -> str:
        width, height = self.images[0].size
        return (
            f"<Generation: {len(self.images)} of {width}x{height},"
            f" latents {list(self.latents.shape)}, {self.timings}>"
        )

    def _repr_png_(self) -> bytes:
        """Show the images side by side in notebooks."""
        from PIL import Image

        width, height = self.images[0].size
        row = Image.new("RGB", (width * len(self.images), height))
        for i, image in enumerate(self.images):
            row.paste(image, (i * width, 0))
        buffer = io.BytesIO()
        row.save(buffer, "PNG")
        return buffer.getvalue()


class Pipeline:
    """A loaded bundle. Several threads may generate from one pipeline at once, and each gets the
    result that it would get alone."""

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
        precision: str = "float32",
        provider_library: str | os.PathLike[str] | None = None,
        max_memory: str | int | None = None,
    ) -> Pipeline:
        """Open the folder that `intaglio export` wrote.

        Warns if there is a GPU, or engines in the bundle, that will not be used, and if the first
        run will compile the model for the device.

        Args:
            bundle: the folder. The size and SHA-256 of every file are compared with its manifest.
            device: cpu, openvino:cpu, openvino:gpu, openvino:npu, cuda, cuda:1 (the second card),
                tensorrt, tensorrt-rtx, webgpu, or auto, which takes the best that works.
            threads: 0 means one for each processor that the process may use.
            onnxruntime: its library. None takes the Python package's, or the system's.
            prepack: whether weights of the loop's graphs, float32 or quantised, are packed when
                they are loaded instead of in each step, on the CPU. Steps are faster, the start is
                slower, processes do not share the weights, and latents differ by rounding.
            precision: what OpenVINO computes in: float32, bfloat16 or float16 (NPUs: this only).
            provider_library: the plugin of OpenVINO, TensorRT-RTX or WebGPU. None takes that of
                the plugin's Python package.
            max_memory: the most memory that a run may take on the device: bytes, a text such as
                "8GB" or "900MiB", or "auto" for what is free. A model that does not fit is loaded
                part by part, a batch that does not is drawn in groups of images, and runs wait
                for each other. None keeps loaded what was used.

        Raises:
            UsageError: there is no device of that name, it does not have that precision,
                `threads` is more than the process may use, `provider_library` is no plugin, or
                `max_memory` is no size.
            InputError: a file of the bundle is missing, truncated or changed, or the bundle is
                newer than this version understands.
            UnavailableError: the device or ONNX Runtime is missing.
        """
        library = onnxruntime or onnxruntime_library() or ""
        options = _core.BackendOptions(
            device=device,
            threads=threads,
            onnxruntime_library=os.fspath(library),
            prepack=prepack,
            precision=precision,
            provider_library=os.fspath(provider_library or ""),
            max_memory="" if max_memory is None else str(max_memory),
        )
        core = _core.Pipeline.open(os.fspath(bundle), options)
        if core.choice.note:
            warnings.warn(
                f"running on {core.choice.device}, since {core.choice.note}", stacklevel=2
            )
        if core.choice.compiling:
            warnings.warn(core.choice.compiling, stacklevel=2)
        return cls(core)

    @property
    def bundle(self) -> _core.Bundle:
        """What the bundle's manifest says."""
        return self._core.bundle

    @property
    def backend(self) -> str:
        """A description of the backend: "ONNX Runtime 1.32.0, cpu, 2 threads"."""
        return self._core.backend

    @property
    def device(self) -> str:
        """The device that the graphs run on. For auto it is the device that was chosen."""
        return self._core.choice.device

    @property
    def placements(self) -> list[_core.GraphPlacement]:
        """Which providers ran the nodes of each graph that has run. Empty on the CPU."""
        return self._core.placements

    def embed(self, prompt: str, negative_prompt: str | None = None) -> _core.PromptEmbeddings:
        """Encode a prompt for `generate(prompt_embeds=...)`.

        Runs with CFG need the negative prompt too; "" is the default of `generate`. A prompt that
        is longer than an encoder reads causes a warning.

        Raises:
            UsageError: the bundle has no text encoders.
            InputError: a prompt has lone surrogates.
        """
        embeds = self._core.embed(prompt, negative_prompt)
        warn(embeds.notes)
        return embeds

    @suggesting
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
        guidance: str | None = None,
        guidance_eta: float | None = None,
        guidance_norm_threshold: float | None = None,
        guidance_momentum: float | None = None,
        guidance_zero_steps: int | None = None,
        guidance_alpha: float | None = None,
        guidance_rescale: float | None = None,
        guidance_normalization: float | None = None,
        guidance_tag: float | None = None,
        guidance_prev: float | None = None,
        distilled_guidance: float | None = None,
        dg_scale: Ramp | None = None,
        dg_window: Window | None = None,
        ma_keep: Ramp | None = None,
        ma_keep_by: str | None = None,
        ma_channels: Sequence[int] = (),
        dg_region: str | None = None,
        transport_from: str | None = None,
        slg_layers: Sequence[int] = (),
        slg_share: float | None = None,
        slg_scale: float | None = None,
        slg_window: Window | None = None,
        reuse_interval: Ramp | None = None,
        reuse_window: Window | None = None,
        skip_interval: Ramp | None = None,
        skip_window: Window | None = None,
        skip_steps: Sequence[int] = (),
        skip_tolerance: float | None = None,
        skip: str | None = None,
        scheduler: str | None = None,
        strength: float | None = None,
        mask_blur: float | None = None,
        mask_padding: int | None = None,
        vae_tile: int = 1024,
        image: Picture | Sequence[Picture] | None = None,
        mask: Picture | None = None,
        latents: Any = None,
        ma_tokens: Picture | None = None,
        prompt_embeds: _core.PromptEmbeddings | str | os.PathLike[str] | None = None,
        on_step: OnStep | None = None,
        progress: bool = False,
    ) -> Generation:
        """Draw images: D = D_c + (cfg_scale - 1)(D_c - D_0) + dg_scale (D_c - D_m).

        Options that are None take the bundle's defaults. Sizes are in pixels. A scale or `ma_keep`
        may be a pair, from the first step to the last, or a list with a value for each step.

        Args:
            prompt, class_label: what to draw. One of them or prompt_embeds is needed.
            negative_prompt: the prompt of the unconditional branch D_0, in place of an empty one.
            steps: number of denoising steps.
            seeds: one for the batch or for each image, as in torch.Generator("cpu").manual_seed.
            batch, height, width: number of images drawn from one seed, and their size.
            cfg_scale: classifier-free guidance, 1 + lambda; 1 is off and saves a branch.
            cfg_window: the part of the run with CFG, which has step i of N if start <= i / N < end.
            guidance: the rule for D_c and D_0: cfg, apg, cfg-zero, tcfg, mambo-g. None means cfg.
            guidance_eta, guidance_norm_threshold, guidance_momentum: of apg.
            guidance_zero_steps, guidance_alpha: of cfg-zero and of mambo-g.
            guidance_rescale, guidance_normalization, guidance_tag, guidance_prev: after any rule.
            distilled_guidance: the guidance that FLUX.1-dev takes as an input. Others refuse it.
            dg_scale, dg_window: Detail Guidance (arXiv 2510.11538; 0: off) and its part of the run.
            ma_keep: share of the massive channels that D_m keeps: 0 is none, above 1 amplifies.
            ma_keep_by: what a pair of `ma_keep` follows, step or timestep; None means step.
            ma_channels: channels to suppress instead of the bundle's.
            dg_region: "mask": DG acts on tokens of `ma_tokens` or `mask` only; None: all.
            transport_from: a prompt whose massive channels replace those of `prompt`, without DG.
            slg_layers, slg_share: blocks, from 0, that D_m skips instead of DG, or their share.
            slg_scale, slg_window: scale and steps of both; docs/guidance.md has their defaults.
            reuse_interval, reuse_window: run D_0 and D_m once in this many steps, and extrapolate.
            skip_interval, skip_window: run the model once in so many steps of this part of the run.
            skip_steps: steps to skip, from 0; the first three with the same branches always run.
            skip_tolerance: a step runs if the line is off by more, relative to D; None means 0.2.
            skip: "auto" takes skip_steps and skip_tolerance from the bundle.
            scheduler: a sampler's name, such as euler; docs/guidance.md lists them.
            strength: the share of `image` that noise replaces, above 0 and up to 1; None: 0.6.
            vae_tile: size of the overlapping tiles in which larger images are decoded.
            image: what to start from, scaled to height and width: uint8 [H, W] or [H, W, 3], or
                Pillow's. With `bundle.references` and no strength or mask: references, or a list.
            mask: an opaque picture of that size: white parts (128 to 255) are drawn anew.
            mask_blur, mask_padding: the radius of a Gaussian that blurs it before, or 0; with
                padding, only it and so many pixels around are drawn, and pasted into `image`.
            latents: float32 with __dlpack__ to start from, laid out as `Generation.latents`.
            ma_tokens: where channels change: on white tokens, not on black ones; None: `mask`.
            prompt_embeds: the result of `embed`, or a file with it, in place of texts.
            on_step: called with a `Step` after each step, for each group of images (max_memory).
                The run stops when it returns False, and raises what it raises. Copy what you keep.
            progress: whether to show a progress bar.

        Raises:
            UsageError: an option makes no sense, such as steps 0 (also a ValueError).
            InputError: a prompt, picture or array cannot be used (also a ValueError).
            Interrupted: `on_step` returned False. Ctrl-C raises KeyboardInterrupt within a step.
            OutOfMemoryError: there is too little memory or `max_memory` (also a MemoryError).
        """
        options = {k: v for k, v in locals().items() if k not in {"self", "on_step", "progress"}}
        result = self._run(core_options(options), on_step, progress)
        warn(result.notes + self._core.placement_notes, depth=3)  # called by `suggesting`
        return Generation.of(result)

    def _run(self, options: dict[str, Any], on_step: OnStep | None, bar: bool) -> _core.Generation:
        if self._core.choice.compiling:
            self._core.load()  # which Ctrl-C interrupts sooner than the run
        with progress_bar(on_step) if bar else nullcontext(on_step) as report:
            return self._core.generate(report, **options)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Pipeline has threads and open files and cannot be pickled or copied: open it in the"
            " worker"
        )

    def __repr__(self) -> str:
        found = self.bundle.massive_activations
        shown = ", ".join(map(str, found.channels[:8])) + (", ..." if found.channels[8:] else "")
        return (
            f"<Pipeline {self.bundle.name}: {self.bundle.family}, {self.bundle.layout},"
            f" {self.bundle.blocks} blocks of {self.bundle.hidden_size} channels;"
            f" suppresses {shown} after block {found.block};"
            f" {self.bundle.defaults}; {self.backend}>"
        )
