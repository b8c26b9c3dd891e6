"""A language model as text encoder: its decoder up to the last hidden state that is used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from intaglio_export.errors import ExportError
from intaglio_export.precision import LowPrecisionMatmuls


class TappedDecoder(nn.Module):
    """Map token_ids [n, L] int64 and text_mask [n, L] to the hidden states [n, L, taps * D].

    `taps` are indices of `hidden_states` as transformers returns them: 0 is the embeddings, k is
    what layer k - 1 gives, and the last one, -1, is also normalized. Those of several taps are
    joined along channels in the order of `taps`. The layers after the last tap are left out. A
    token sees itself and the tokens before it that are not padding. With `pads_left` a token of
    padding sees nothing, and attention gives it zeros.
    """

    def __init__(
        self, encoder: Any, taps: Sequence[int], dtype: torch.dtype, *, pads_left: bool = False
    ) -> None:
        super().__init__()
        decoder = encoder.get_decoder()
        states = decoder.config.num_hidden_layers + 1
        self._taps = [tap + states if tap < 0 else tap for tap in taps]
        self._dtype = dtype
        self._pads_left = pads_left
        self.decoder = _cut(decoder, max(self._taps))

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        ids, mask = tensors
        precision = LowPrecisionMatmuls(self._dtype, lambda: f"the {type(self.decoder).__name__}")
        with precision, _ZerosForNothing(mask) if self._pads_left else nullcontext():
            out = self.decoder(
                ids, attention_mask=mask > 0, output_hidden_states=True, use_cache=False
            )
        return torch.cat([out.hidden_states[tap] for tap in self._taps], dim=-1)


class _ZerosForNothing(TorchFunctionMode):
    """While active, attention does not depend on what a runtime gives where no key is attended to.

    torch gives zeros there. ONNX leaves it open, and the softmax of a row of equal, very low scores
    would give the mean of all values. Such rows attend to everything here, and are set to zero.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        """`mask` [n, L] is not 0 where a token is no padding."""
        super().__init__()
        self._sees = (mask.cumsum(1) > 0)[:, None, :, None]

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        mask = kwargs.get("attn_mask")  # None where no row has padding
        if func is not functional.scaled_dot_product_attention or mask is None:
            return func(*args, **kwargs)
        return func(*args, **kwargs | {"attn_mask": mask | ~self._sees}) * self._sees


def check_taps(encoder: Any, taps: Sequence[int]) -> None:
    """Check that the decoder of `encoder` has the hidden states `taps`.

    Raises:
        ExportError: it has fewer layers.
    """
    layers = encoder.get_decoder().config.num_hidden_layers
    if max(taps) > layers:
        raise ExportError(
            f"The text encoder {type(encoder).__name__} has {layers} layers, but the model takes"
            f" the hidden states after layer {max(taps)}: it is of another model."
        )


def _cut(decoder: Any, last: int) -> Any:
    """Return a decoder of the first `last` layers, which shares the weights of `decoder`."""
    if last == decoder.config.num_hidden_layers:
        return decoder
    short = copy.copy(decoder)
    short._modules = dict(decoder._modules)
    short.config = copy.deepcopy(decoder.config)
    short.config.num_hidden_layers = last
    short.layers = nn.ModuleList(list(decoder.layers)[:last])
    short.norm = nn.Identity()  # only the output of the whole decoder is normalized
    return short
