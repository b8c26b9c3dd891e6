"""How much attention each key gets in a diffusers transformer, and attention without some keys.

The queries and keys are those that diffusers' own attention processors give to torch, after norms
and rotary positions, so no processor is replaced. Cross-attention to a text is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from intaglio.torch_reference.model import Model
from intaglio_export.adapters import Adapter
from intaglio_export.adapters.flux import FluxAdapter
from intaglio_export.adapters.qwen_image import QwenImageAdapter
from intaglio_export.adapters.text_first import TextFirstAdapter

KINDS = ("image", "text", "padding")
IMAGE, TEXT, PADDING = range(len(KINDS))
SCORES = 2**22
# Families whose sequence of keys begins with the text; in the others it begins with the image.
_TEXT_FIRST = (FluxAdapter, QwenImageAdapter, TextFirstAdapter)


@dataclass(frozen=True)
class Attention:
    """One call of attention in a block: queries and keys [B, heads, tokens, D].

    `mask` is None or what torch takes, and `images` says which of the tokens are image tokens.
    """

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scale: float
    images: slice

    def mass(self) -> torch.Tensor:
        """Return the share [B, keys] of the image tokens' attention that each key gets.

        It is the mean over heads and image tokens, and sums to 1. At most SCORES scores, or those
        of one head of one row, are in memory at once.
        """
        rows, heads, queries, keys = (*self.query.shape[:3], self.key.shape[2])
        mask = None if self.mask is None else self.mask.expand(rows, heads, queries, keys)
        asked = self.query[:, :, self.images]
        pairs = torch.cartesian_prod(torch.arange(rows), torch.arange(heads))
        found = torch.zeros(rows, keys)
        at_once = max(1, SCORES // (asked.shape[2] * keys))
        for row, head in (part.T for part in torch.split(pairs, at_once)):
            scores = asked[row, head].float() @ self.key[row, head].float().mT * self.scale
            if mask is not None:
                scores = _masked(scores, mask[row, head][:, self.images])
            found.index_add_(0, row, scores.softmax(-1).mean(1))
        return found / heads

    def mask_without(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the mask of the same call without key `hidden[i]` of row i."""
        without = torch.zeros(len(self.key), 1, 1, self.key.shape[2], dtype=self.query.dtype)
        without[torch.arange(len(hidden)), 0, 0, hidden] = -torch.inf
        return without if self.mask is None else _masked(without, self.mask)


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return scores + mask
    return torch.where(mask, scores, -torch.inf)


# Gets the block and the call; may return another mask for it.
Attend = Callable[[int, Attention], torch.Tensor | None]


class _Calls(TorchFunctionMode):
    """Gives each call of torch's attention to `attend` while it is active."""

    def __init__(self, attend: Callable[[Any], torch.Tensor | None]) -> None:
        super().__init__()
        self._attend = attend

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        changed = self._attend(named)
        return func(**named if changed is None else named | {"attn_mask": changed})


@contextmanager
def attending(model: Model, attend: Attend) -> Iterator[None]:
    """Call `attend` for the attention over image tokens of every block of every forward inside."""
    adapter = model.adapter
    with ExitStack() as stack:
        for k, block in enumerate(adapter.blocks()):

            def call(named: Any, k: int = k) -> torch.Tensor | None:
                query, key = named["query"], named["key"]
                images = image_tokens(adapter, model.tokens, key.shape[2])
                scale = named.get("scale") or query.shape[-1] ** -0.5
                return attend(k, Attention(query, key, named.get("attn_mask"), scale, images))

            mode = _Calls(call)

            def entering(module: Any, args: Any, mode: _Calls = mode) -> None:
                mode.__enter__()  # type: ignore[no-untyped-call]

            def leaving(module: Any, args: Any, output: Any, mode: _Calls = mode) -> None:
                mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

            module = adapter.attention(block)
            stack.callback(module.register_forward_pre_hook(entering).remove)
            stack.callback(module.register_forward_hook(leaving, always_call=True).remove)
        yield


def image_tokens(adapter: Adapter, tokens: int, keys: int) -> slice:
    """Return where the image tokens are among the keys of a block."""
    return slice(keys - tokens, keys) if isinstance(adapter, _TEXT_FIRST) else slice(tokens)


def key_kinds(model: Model, prompted: NDArray[np.bool_] | None, keys: int) -> NDArray[np.int64]:
    """Return the index into KINDS [B, keys] of each key of a block.

    `prompted` [B, S] says which tokens of the text are a prompt's (`written_tokens`).
    """
    if prompted is None or keys == model.tokens:
        return np.full((1 if prompted is None else len(prompted), keys), IMAGE)
    kinds = np.full((len(prompted), keys), PADDING)
    images = image_tokens(model.adapter, model.tokens, keys)
    kinds[:, images] = IMAGE
    others = np.flatnonzero(kinds[0] != IMAGE)[model.adapter.prompt_tokens]
    kinds[:, others] = np.where(prompted, TEXT, PADDING)
    return kinds


def written_tokens(model: Model) -> NDArray[np.bool_] | None:
    """Return which tokens [P, S] of the encoded text belong to the model's prompts.

    The others are padding: tokens that a tokenizer adds up to a fixed length, masked tokens, and
    the zeros that stand for an absent encoder. None without a text. A tokenizer is not asked where
    the prompt is put into a template.
    """
    if "text" not in model.conditions:
        return None
    text = model.conditions["text"]
    prompted = (text != 0).any(2)
    if "text_mask" in model.conditions:
        prompted &= model.conditions["text_mask"] > 0
    layout, pipeline = model.adapter.prompt(model.max_sequence_length), model.adapter.pipeline
    begin = 0
    for segment in layout.text if layout else ():
        encoders = [layout.encoders[name] for name in segment.encoders]  # type: ignore[union-attr]
        tokenizers = [getattr(pipeline, one.tokenizer) for one in encoders if not one.template]
        if tokenizers and all(tokenizers):
            written = [_written(one, model.prompts, segment.length) for one in tokenizers]
            prompted[:, begin : begin + segment.length] &= torch.stack(written).any(0)
        begin += segment.length
    found: NDArray[np.bool_] = prompted.numpy()
    return found


def _written(tokenizer: Any, prompts: Sequence[str], length: int) -> torch.Tensor:
    """Return which tokens [P, length] of the prompts are not padding."""
    told = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    mask: torch.Tensor = told.attention_mask > 0
    return mask


@contextmanager
def hiding(model: Model, which: str, seed: int = 0) -> Iterator[None]:
    """Hide one key of each image in each block and step: the "top" one or another at "random".

    The top key is the one that gets most attention of the image tokens in that call.
    """
    generator = torch.Generator().manual_seed(seed)

    def attend(block: int, call: Attention) -> torch.Tensor:
        mass = call.mass()
        hidden = mass.argmax(1)
        if which == "random":
            others = (mass > 0).float()
            others[torch.arange(len(mass)), hidden] = 0
            hidden = torch.multinomial(others, 1, generator=generator)[:, 0]
        return call.mask_without(hidden)

    with attending(model, attend):
        yield
