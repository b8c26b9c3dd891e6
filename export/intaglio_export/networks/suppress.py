"""The op `ai.intaglio::MASuppress`: its reference in torch and its definition in ONNX.

cpp/ops/SPEC.md defines it. The branches separate at this op (Detail Guidance, arXiv 2510.11538;
`keep` and its per-token form, arXiv 2607.02968).
"""

from __future__ import annotations

import onnx
import onnx.helper
import torch

DOMAIN = "ai.intaglio"
NAME = "MASuppress"
VERSION = 2
INPUTS = ("hidden", "mask", "ref", "branch", "keep")
SOURCE = "source"  # the last input, which version 2 added; a graph may lack it

# CastLike casts constants to the type of `hidden`, because ONNX does not allow a float32 constant
# beside a float16 tensor.
_BEFORE = (
    ("Constant", (), "one_f"),
    ("CastLike", ("one_f", "hidden"), "one"),
    ("CastLike", ("mask", "hidden"), "mask_t"),
    ("CastLike", ("ref", "hidden"), "ref_t"),
    ("CastLike", ("keep", "hidden"), "keep_t"),
    ("Gather", ("hidden", "branch"), "x"),
    ("Constant", (), "minus_one"),
    ("Unsqueeze", ("keep_t", "minus_one"), "keep_column"),
    ("Sub", ("one", "keep_column"), "strength"),
    ("Mul", ("mask_t", "strength"), "a"),
    ("Sub", ("one", "a"), "kept"),
    ("Mul", ("kept", "x"), "kept_x"),
)
# What replaces `ref` in a graph with `source`: `ref` comes first, so that it is at 0. WebGPU's
# provider has neither Flatten nor a comparison of int64, with which steps would copy to the host.
_TARGET = (
    ("Shape", ("hidden",), "channels"),
    ("Concat", ("minus_one", "channels"), "flat"),
    ("Reshape", ("hidden", "flat"), "all_tokens"),
    ("Constant", (), "first_axis"),
    ("Unsqueeze", ("ref_t", "first_axis"), "ref_row"),
    ("Concat", ("ref_row", "all_tokens"), "targets"),
    ("Gather", ("targets", "source"), "target"),
)
_AFTER = (
    ("Add", ("kept_x", "moved"), "suppressed"),
    ("Sub", ("one", "one"), "zero"),
    ("Equal", ("a", "zero"), "untouched"),
    ("Where", ("untouched", "x", "suppressed"), "output"),
)
_ATTRIBUTES: dict[str, dict[str, object]] = {
    "one_f": {"value": onnx.helper.make_tensor("one_f", onnx.TensorProto.FLOAT, [], [1.0])},
    "minus_one": {"value_ints": [-1]},
    "first_axis": {"value_ints": [0]},
    "channels": {"start": 2},
    "flat": {"axis": 0},
    "targets": {"axis": 0},
}


def ma_suppress(
    hidden: torch.Tensor,
    mask: torch.Tensor,
    ref: torch.Tensor,
    branch: torch.Tensor,
    keep: torch.Tensor,
    source: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gather rows of `hidden` for each branch, and move their massive channels towards a target.

    Args:
        hidden: [B, T, C] float; image tokens after block m.
        mask: [C] float32; 1 on massive channels, else 0.
        ref: [C] float32; the value of a fully suppressed channel.
        branch: [F] int64 in [0, B); the row of `hidden` that each output row continues.
        keep: [F, T] float32; 1 leaves a token unchanged, 0 suppresses it fully, and more than 1
            amplifies it.
        source: [F, T] int64; 1 + row * T + token for the token of `hidden` whose channels are the
            target, or 0 for `ref`. None is 0 everywhere.

    Returns:
        [F, T, C] with the type of `hidden`. Values that are not suppressed keep all their bits.

    Raises:
        IndexError: a value of `branch` or `source` is outside its range.
    """
    inputs = (hidden, mask, ref, branch, keep)
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NAME}",
            inputs if source is None else (*inputs, source),
            {},
            dtype=hidden.dtype,
            shape=(branch.shape[0], hidden.shape[1], hidden.shape[2]),
            version=VERSION,
        )
    x = hidden.index_select(0, branch)
    a = mask.to(x.dtype) * (1 - keep.to(x.dtype).unsqueeze(-1))
    target = ref.to(x.dtype)
    if source is not None:
        target = torch.cat([target.unsqueeze(0), hidden.flatten(0, 1)])[source]
    return torch.where(a == 0, x, (1 - a) * x + a * target)


def function_proto(opset: int, with_source: bool = True) -> onnx.FunctionProto:
    """Return the op as a model-local function in standard operators of `opset` (15 or later).

    A node without `source` needs the function without it.
    """
    target = _TARGET if with_source else ()
    moved = ("Mul", ("a", "target" if with_source else "ref_t"), "moved")
    nodes = [
        onnx.helper.make_node(op_type, inputs, [output], **_ATTRIBUTES.get(output, {}))
        for op_type, inputs, output in (*_BEFORE, *target, moved, *_AFTER)
    ]
    return onnx.helper.make_function(
        DOMAIN,
        NAME,
        [*INPUTS, SOURCE] if with_source else INPUTS,
        ["output"],
        nodes,
        [onnx.helper.make_opsetid("", opset)],
        doc_string="Gathers rows by branch and moves masked channels to a target by (1 - keep).",
    )
