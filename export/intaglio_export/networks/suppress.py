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
VERSION = 1
INPUTS = ("hidden", "mask", "ref", "branch", "keep")

# CastLike casts constants to the type of `hidden`, because ONNX does not allow a float32 constant
# beside a float16 tensor.
_BODY = (
    ("Constant", (), "one_f"),
    ("CastLike", ("one_f", "hidden"), "one"),
    ("CastLike", ("mask", "hidden"), "mask_t"),
    ("CastLike", ("ref", "hidden"), "ref_t"),
    ("CastLike", ("keep", "hidden"), "keep_t"),
    ("Gather", ("hidden", "branch"), "x"),
    ("Constant", (), "last_axis"),
    ("Unsqueeze", ("keep_t", "last_axis"), "keep_column"),
    ("Sub", ("one", "keep_column"), "strength"),
    ("Mul", ("mask_t", "strength"), "a"),
    ("Sub", ("one", "a"), "kept"),
    ("Mul", ("kept", "x"), "kept_x"),
    ("Mul", ("a", "ref_t"), "moved"),
    ("Add", ("kept_x", "moved"), "suppressed"),
    ("Sub", ("one", "one"), "zero"),
    ("Equal", ("a", "zero"), "untouched"),
    ("Where", ("untouched", "x", "suppressed"), "output"),
)


def ma_suppress(
    hidden: torch.Tensor,
    mask: torch.Tensor,
    ref: torch.Tensor,
    branch: torch.Tensor,
    keep: torch.Tensor,
) -> torch.Tensor:
    """Gather rows of `hidden` for each branch, and move their massive channels towards `ref`.

    Args:
        hidden: [B, T, C] float; image tokens after block m.
        mask: [C] float32; 1 on massive channels, else 0.
        ref: [C] float32; the value of a fully suppressed channel.
        branch: [F] int64 in [0, B); the row of `hidden` that each output row continues.
        keep: [F, T] float32; 1 leaves a token unchanged, 0 suppresses it fully.

    Returns:
        [F, T, C] with the type of `hidden`. Values that are not suppressed keep all their bits.

    Raises:
        IndexError: a value of `branch` is outside [0, B).
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NAME}",
            (hidden, mask, ref, branch, keep),
            {},
            dtype=hidden.dtype,
            shape=(branch.shape[0], hidden.shape[1], hidden.shape[2]),
            version=VERSION,
        )
    x = hidden.index_select(0, branch)
    a = mask.to(x.dtype) * (1 - keep.to(x.dtype).unsqueeze(-1))
    return torch.where(a == 0, x, (1 - a) * x + a * ref.to(x.dtype))


def function_proto(opset: int) -> onnx.FunctionProto:
    """Return the op as a model-local function in standard operators of `opset` (13 or later)."""
    constants = {
        "one_f": onnx.helper.make_tensor("one_f", onnx.TensorProto.FLOAT, [], [1.0]),
        "last_axis": onnx.helper.make_tensor("last_axis", onnx.TensorProto.INT64, [1], [-1]),
    }
    nodes = []
    for op_type, inputs, output in _BODY:
        attributes: dict[str, object] = {}
        if op_type == "Constant":
            attributes["value"] = constants[output]
        elif op_type == "Gather":
            attributes["axis"] = 0
        nodes.append(onnx.helper.make_node(op_type, inputs, [output], **attributes))
    return onnx.helper.make_function(
        DOMAIN,
        NAME,
        INPUTS,
        ["output"],
        nodes,
        [onnx.helper.make_opsetid("", opset)],
        doc_string="Gathers rows by branch and scales masked channels towards ref by (1 - keep).",
    )
