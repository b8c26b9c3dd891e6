"""Run matrix products and attention in float16 or bfloat16, and everything else in float32.

Massive activations overflow float16, so the residual stream, modulation, gates, norms and the op
stay float32 in every precision. The weights of matmuls are stored in the low precision. A matmul
over conditioning vectors (time and pooled embeddings, AdaLN), which have no token axis, has a
low-precision weight but is computed in float32, because it costs almost nothing.

No module of the model is replaced: a torch function mode changes the calls, both while tracing and
in a plain run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from intaglio_export.errors import ExportError
from intaglio_export.support.memory import page_out

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# The modules whose weight is used in a matmul. Other parameters are few and stay float32.
_MATMULS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


def store_weights_in(network: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of matmuls in `dtype`, and all other floating-point tensors in float32."""
    # This is T5's `wo`, whose results exceed float16.
    kept = (getattr(network, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    matmuls = {
        id(module.weight)
        for name, module in network.named_modules()
        if isinstance(module, _MATMULS) and name.rpartition(".")[2] not in kept
    }
    for tensor in (*network.parameters(), *network.buffers()):
        wanted = dtype if id(tensor) in matmuls else torch.float32
        if tensor.is_floating_point() and tensor.dtype != wanted:
            # `tensor.data = converted` would not do: a tensor that views a mapped file keeps its
            # old type there, and torch.export refuses it.
            converted = tensor.detach().to(wanted)
            page_out(tensor)
            if isinstance(tensor, nn.Parameter):
                converted = nn.Parameter(converted, requires_grad=False)
            torch.utils.swap_tensors(tensor, converted)  # type: ignore[no-untyped-call]


class LowPrecisionMatmuls(TorchFunctionMode):
    """While active, matmuls round their operands and their result to the type of their weight.

    In an ONNX export the matmuls have that type. In a plain run they are computed in float32 on
    rounded operands and the result is rounded, as a kernel that sums in float32 does it.

    `dtype` is the type of attention, which has no weight. If it is float32, weights of any type are
    converted and nothing is rounded.

    Raises:
        ExportError: a result exceeds float16. `where` returns the name of the current part of the
            network for the message.
    """

    def __init__(
        self, dtype: torch.dtype, where: Callable[[], str] = lambda: "the network"
    ) -> None:
        super().__init__()
        self._dtype = dtype
        self._where = where

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is functional.embedding:
            return func(*args, **kwargs).float()
        if func in (functional.linear, torch.conv1d, torch.conv2d, torch.conv3d):
            return self._matmul(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if attn_mask is not None:
            # ONNX Runtime expects one row of the mask for each query.
            attn_mask = attn_mask.expand(*attn_mask.shape[:-2], query.shape[-2], -1)
            if attn_mask.is_floating_point():
                attn_mask = attn_mask.to(self._computed)
        query, key, value = (self._rounded(x, self._dtype) for x in (query, key, value))
        result = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, **kwargs
        )
        return self._rounded(result, self._dtype).float()

    def _matmul(
        self,
        func: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        x = x.float()
        linear = func is functional.linear
        result: torch.Tensor
        wide = torch.float32 in (weight.dtype, self._dtype)
        if wide or (linear and x.ndim == 2):
            result = func(x, weight.float(), bias, *args, **kwargs)
            return result
        operand = weight if torch.onnx.is_in_onnx_export() else weight.float()
        result = func(self._rounded(x, weight.dtype), operand, None, *args, **kwargs)
        result = self._rounded(result, weight.dtype).float()
        if bias is None:
            return result
        return result + (bias if linear else bias.view(-1, *[1] * (result.ndim - 2)))

    @property
    def _computed(self) -> torch.dtype:
        return self._dtype if torch.onnx.is_in_onnx_export() else torch.float32

    def _rounded(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return `x` in `dtype`, or in a plain run its values rounded to `dtype`."""
        rounded = x.to(dtype)
        if dtype == torch.float32 or torch.onnx.is_in_onnx_export():
            return rounded
        if dtype == torch.float16 and not rounded.isfinite().all():
            raise ExportError(
                f"In {self._where()} a matrix product reaches {x.abs().max().item():.0f}, and the"
                " largest float16 is 65504; export with --dtype bf16 or fp32."
            )
        return rounded.float()
