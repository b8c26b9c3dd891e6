"""Z-Image and Z-Image-Turbo: diffusers' `ZImageTransformer2DModel`, arXiv 2511.22699."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import nn

from intaglio_export.adapters.base import LARGEST_SIDE, Adapter, Inputs, Modulation
from intaglio_export.adapters.layouts import (
    EncoderLayout,
    LatentLayout,
    PipelineDefaults,
    PromptLayout,
    TextSegment,
)
from intaglio_export.bundle.chat_template import ChatTemplate
from intaglio_export.errors import ExportError
from intaglio_export.graph_specs import TensorSpec
from intaglio_export.support.patching import replaced

TURBO_SHIFT, TURBO_STEPS = 3.0, 8
_PATCH = 2
_EMBEDDER = f"{_PATCH}-1"  # the model's name for patches of 2 x 2 cells of one frame


class ZImageAdapter(Adapter):
    """`ZImagePipeline`: one sequence of image tokens, then text tokens, after refiner blocks."""

    family = "z-image"
    pipeline_classes = ("ZImagePipeline",)
    prediction_type = "velocity"
    text_encoders = ("text_encoder",)
    sigmas = "linspace"
    _tokens = 0  # image tokens of the current forward
    _text_tokens = 0

    def __init__(self, pipeline: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(pipeline, dtype)
        if self.config["siglip_feat_dim"] is not None:
            raise ExportError(
                "The transformer is from Z-Image-Omni (siglip_feat_dim); this version exports the"
                " text-to-image models only."
            )

    def blocks(self) -> Sequence[nn.Module]:
        """Return the joint blocks. The refiners run before them, and the text has its own."""
        return list(self.transformer.layers)

    def split(
        self, block: nn.Module, streams: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Split the joint sequence into image tokens, and padding and text tokens."""
        return streams[:, : self._tokens], (streams[:, self._tokens :],)

    def join(
        self, block: nn.Module, hidden: torch.Tensor, others: tuple[torch.Tensor | None, ...]
    ) -> torch.Tensor:
        return torch.cat([hidden, *others], dim=1)  # type: ignore[list-item]

    @property
    def prompt_tokens(self) -> slice:
        begin = int(_filled(self._tokens)) - self._tokens  # after what fills up the image's tokens
        return slice(begin, begin + self._text_tokens)

    def attention(self, block: nn.Module) -> nn.Module:
        return block.attention  # type: ignore[return-value]

    def gating(self, block: nn.Module) -> nn.Module:
        return block.adaLN_modulation  # type: ignore[return-value]

    def gate(self, block: nn.Module, kwargs: Mapping[str, Any], output: Any) -> torch.Tensor:
        """Return the gate out of scale and gate of attention, then of the MLP."""
        alpha: torch.Tensor = output.chunk(4, dim=-1)[1].tanh()
        return alpha

    @property
    def row_arguments(self) -> tuple[str, ...]:
        # Image positions begin after the prompt, so they differ from row to row.
        return ("attn_mask", "freqs_cis")

    def modulations(self) -> tuple[Modulation, ...]:
        joint = self.transformer.layers
        refiner = [Modulation(b.adaLN_modulation[0], 0) for b in self.transformer.noise_refiner]
        blocks = [Modulation(b.adaLN_modulation[0], k) for k, b in enumerate(joint)]
        return (*refiner, *blocks, Modulation(self._final.adaLN_modulation[1], len(joint)))

    def projection(self) -> tuple[nn.Module, ...]:
        return (self.transformer.cap_embedder,)

    def inputs(self) -> tuple[TensorSpec, ...]:
        config = self.transformer.config
        return (
            TensorSpec(
                "latent", ("base_rows", config.in_channels, "latent_height", "latent_width")
            ),
            TensorSpec("text", ("base_rows", "text_length", config.cap_feat_dim)),
            TensorSpec("text_mask", ("base_rows", "text_length")),
            TensorSpec("timestep", ("base_rows",)),
        )

    def predict(self, inputs: Inputs) -> torch.Tensor:
        sequences = _Sequences(self.transformer, inputs["latent"].shape[2:], inputs["text_mask"])
        self._tokens, self._text_tokens = sequences.tokens, sequences.text_tokens
        with sequences.in_place():
            velocity: torch.Tensor = self.transformer(
                [inputs["latent"]],
                (1000 - inputs["timestep"]) / 1000,
                [inputs["text"]],
                return_dict=False,
            )[0]
        return -velocity

    @property
    def _final(self) -> Any:
        return self.transformer.all_final_layer[_EMBEDDER]

    @property
    def patch_size(self) -> int:
        return _PATCH

    @property
    def channels(self) -> int:
        return int(self.transformer.dim)

    def latent(self) -> LatentLayout:
        vae = self.pipeline.vae.config
        return LatentLayout(
            channels=self.transformer.in_channels,
            vae_scale_factor=self._cell,
            scaling_factor=vae.scaling_factor,
            shift_factor=vae.shift_factor,
            max_height=self._max_side,
            max_width=self._max_side,
        )

    @property
    def _cell(self) -> int:
        """Pixels along a side of a latent cell."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def _max_side(self) -> int:
        """Pixels of the longest side whose tokens have a position in the model's tables."""
        places: int = min(self.transformer.axes_lens[1:])
        return min(LARGEST_SIDE, places * _PATCH * self._cell)

    def prompt(self, max_sequence_length: int) -> PromptLayout:
        places = int(self.transformer.axes_lens[0]) - 2  # of prompts begin at 1, then the image's
        if _filled(max_sequence_length) > places:
            raise ExportError(
                f"max_sequence_length is {max_sequence_length}, and the transformer has positions"
                f" for {places // SEQ_MULTI_OF * SEQ_MULTI_OF} tokens of a prompt; give fewer in"
                " the file of --settings."
            )
        layout = EncoderLayout(
            "tokenizer",
            max_sequence_length,
            ("hidden",),
            masked=True,
            taps=(-2,),
            template=ChatTemplate(options={"add_generation_prompt": True, "enable_thinking": True}),
        )
        return PromptLayout(
            max_sequence_length=max_sequence_length,
            encoders={"text_encoder": layout},
            text=(TextSegment(("text_encoder",), max_sequence_length),),
            text_width=self.transformer.config.cap_feat_dim,
            text_mask="text_encoder",
        )

    @property
    def default_side(self) -> int:
        return 1024  # as the pipeline's call has it

    @cached_property
    def distilled(self) -> bool:
        """Whether this is Turbo, which has the same configuration but for its scheduler's shift.

        A model that was trained from Turbo and takes CFG again has that shift too.
        """
        return float(self.pipeline.scheduler.config.get("shift", 0)) == TURBO_SHIFT

    def guesses(self) -> list[str]:
        if not self.distilled:
            return []
        return [
            f"The scheduler has Turbo's shift {TURBO_SHIFT:g}, so the model is taken for one that"
            ' is distilled to do without CFG; "distilled": false in the file of --settings says'
            " that it is not."
        ]

    def defaults(self) -> PipelineDefaults:
        defaults = super().defaults()
        if self.distilled:  # the pipeline's defaults are those of Z-Image
            return replace(defaults, steps=TURBO_STEPS, cfg_scale=1.0)
        # Its guidance_scale s is D_c + s (D_c - D_0), which is a cfg_scale of s + 1.
        return replace(defaults, cfg_scale=defaults.cfg_scale + 1.0)

    def encode_prompts(self, prompts: list[str], max_sequence_length: int) -> Inputs:
        embeds, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=False,
            device=torch.device("cpu"),
            max_sequence_length=max_sequence_length,
        )
        text = embeds[0].new_zeros(len(embeds), max_sequence_length, embeds[0].shape[1])
        mask = text.new_zeros(text.shape[:2])
        for row, embed in enumerate(embeds):
            text[row, : len(embed)] = embed
            mask[row, : len(embed)] = 1.0
        return {"text": text, "text_mask": mask}


class _Sequences:
    """The transformer's sequences as tensors with a row for each item of its lists.

    Its forward reads lists of images and of prompts with any lengths, fills each up to a multiple
    of 32 tokens and makes a batch of them; a trace would keep the traced lengths. Here each list
    has one item [1, B, S, D], which holds all rows: images of one size, and prompts of one length
    with a mask. The rotations are real numbers, because ONNX has no complex ones.
    """

    def __init__(self, transformer: Any, cells: Sequence[int], mask: torch.Tensor) -> None:
        """`cells` are the height and width of the latent, and `mask` [B, L] is of the prompts."""
        self._transformer = transformer
        self._rows, self._columns = (side // _PATCH for side in cells)
        self.tokens, self.text_tokens = self._rows * self._columns, mask.shape[1]
        self._lengths = mask.sum(dim=1, keepdim=True).long()  # [B, 1]
        embedder = transformer.rope_embedder
        tables = embedder.precompute_freqs_cis(
            embedder.axes_dims, embedder.axes_lens, theta=embedder.theta
        )
        self._tables = [torch.view_as_real(table) for table in tables]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the transformer's own methods inside."""
        transformer = self._transformer
        changes = [
            (transformer, "patchify_and_embed", self._parts),
            (transformer, "_prepare_sequence", self._prepare),
            (transformer, "_build_unified_sequence", self._join),
            (transformer, "unpatchify", self._unpatchify),
        ]
        # What replaces the prompt's projection in the loop has no axis of items.
        item = lambda module, args, output: output.reshape(1, *output.shape[-3:])  # noqa: E731
        modules = (transformer.cap_embedder, transformer.all_final_layer[_EMBEDDER])
        handles = [module.register_forward_hook(item) for module in modules]
        try:
            with replaced(changes):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _parts(self, images: Any, texts: Any, *patch: int) -> tuple[Any, ...]:
        """Return the items with their positions [B, S, 3], and which tokens are filled in."""
        image, text = (torch.arange(_filled(n)) for n in (self.tokens, self.text_tokens))
        begin = (_filled(self._lengths) + 1).expand(-1, image.shape[0])  # images follow prompts
        sides = torch.meshgrid(torch.arange(self._rows), torch.arange(self._columns), indexing="ij")
        row, column = (_fill(side.flatten(), 0, image).expand_as(begin) for side in sides)
        outside = ~(image < self.tokens)  # OpenVINO has no GreaterOrEqual of int64
        image_position = torch.stack([begin, row, column], dim=-1)
        image_position = image_position.masked_fill(outside[:, None], 0)
        text_position = torch.stack([text + 1, 0 * text, 0 * text], dim=-1)
        attended = text < _filled(self._lengths)
        return (
            [self._patches(images[0]).unsqueeze(0)],
            [texts[0].unsqueeze(0)],
            None,
            image_position,
            text_position.expand(self._lengths.shape[0], -1, -1),
            (outside, None),
            (~(text < self._lengths), attended),
        )

    def _patches(self, latent: torch.Tensor) -> torch.Tensor:
        """Return latents [B, C, H, W] as tokens [B, T, 4 * C], in which channels vary first."""
        rows, channels = latent.shape[:2]
        patches = latent.view(rows, channels, self._rows, _PATCH, self._columns, _PATCH)
        return patches.permute(0, 2, 4, 3, 5, 1).reshape(rows, self.tokens, -1)

    def _unpatchify(self, items: Any, *unused: Any) -> torch.Tensor:
        """Undo `_patches` for the image tokens of the sequence."""
        tokens: torch.Tensor = items[0][:, : self.tokens]
        channels = int(self._transformer.out_channels)  # a number, which the graph's output keeps
        grid = (self._rows, self._columns, _PATCH, _PATCH, channels)
        patches = tokens.view(tokens.shape[0], *grid)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def _prepare(
        self,
        items: Any,
        position: torch.Tensor,
        masks: tuple[torch.Tensor, torch.Tensor | None],
        pad_token: torch.Tensor,
        *unused: Any,
    ) -> tuple[Any, ...]:
        """Return the tokens [B, S, C], their rotations and the mask of attention [B, S] or None."""
        outside, attended = masks
        tokens = _fill(items[0].squeeze(0), 1, torch.arange(position.shape[1]))
        tokens = torch.where(outside.unsqueeze(-1), pad_token, tokens)
        parts = [table[position[..., axis]] for axis, table in enumerate(self._tables)]
        return tokens, _Rotations(torch.cat(parts, dim=-2)), attended, None, None

    def _join(
        self,
        image: torch.Tensor,
        image_rotations: _Rotations,
        _sizes: Any,
        _noise: Any,
        text: torch.Tensor,
        text_rotations: _Rotations,
        *unused: Any,
    ) -> tuple[Any, ...]:
        """Return image and text tokens side by side, their rotations and the mask of attention."""
        attended = torch.arange(text.shape[1]) < _filled(self._lengths)
        mask = torch.cat([attended.new_ones(image.shape[:2]), attended], dim=1)
        rotations = torch.cat([image_rotations.parts, text_rotations.parts], dim=1)
        return torch.cat([image, text], dim=1), _Rotations(rotations), mask, None


def _filled(length: Any) -> Any:
    """Return the next multiple of 32, to which the transformer fills up each sequence."""
    return (length + SEQ_MULTI_OF - 1) // SEQ_MULTI_OF * SEQ_MULTI_OF


def _fill(values: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Repeat the last of `values` along `dim` until there is one for each of `index`."""
    return values.index_select(dim, index.clamp(max=values.shape[dim] - 1))


@dataclass(frozen=True)
class _Rotations:
    """Complex numbers [B, S, D/2] as [B, S, D/2, 2], with what blocks and the fork do to them."""

    parts: torch.Tensor

    def unsqueeze(self, dim: int) -> torch.Tensor:
        return torch.view_as_complex(self.parts.unsqueeze(dim))

    def index_select(self, dim: int, index: torch.Tensor) -> _Rotations:
        return _Rotations(self.parts.index_select(dim, index))
