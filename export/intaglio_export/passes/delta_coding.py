"""The ops `ai.intaglio::DeltaQuantize` and `DeltaDequantize`, around a matrix product of integers.

cpp/ops/SPEC.md defines them. They quantise a row of a batch as its difference from another row, its
anchor, so that the error of the anchor's product is common to both and cancels in their difference.
"""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

from intaglio_export.networks.suppress import DOMAIN, VERSION

QUANTIZE, DEQUANTIZE = "DeltaQuantize", "DeltaDequantize"
ZERO = 128  # the integer that stands for zero

_IS_ANCHOR = """
    first = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    rows = Size (anchor)
    row = Range (first, rows, step)
    same = Equal (anchor, row)
    inner = Constant <value_ints = [1, 2]> ()
    is_anchor = Unsqueeze (same, inner)
"""
_BODIES = {
    QUANTIZE: f"""
{QUANTIZE} (x, anchor, kept) => (quantized, scale) {{ {_IS_ANCHOR}
    nothing = Constant <value_float = 0.0> ()
    anchored = Gather <axis = 0> (x, anchor)
    base = Where (is_anchor, nothing, anchored)
    difference = Sub (x, base)
    value = Mul (difference, kept)
    magnitude = Abs (value)
    last = Constant <value_ints = [-1]> ()
    maximum = ReduceMax <keepdims = 1> (magnitude, last)
    smallest = Constant <value_float = 1e-30> ()
    largest = Max (maximum, smallest)
    steps = Constant <value_float = 127.0> ()
    inverse = Div (steps, largest)
    scaled = Mul (value, inverse)
    rounded = Round (scaled)
    zero = Constant <value_float = {ZERO}.0> ()
    shifted = Add (rounded, zero)
    quantized = Cast <to = {ir.DataType.UINT8.value}> (shifted)
    scale = Div (largest, steps)
}}""",
    DEQUANTIZE: f"""
{DEQUANTIZE} (product, scale, columns, bias, anchor) => (output) {{ {_IS_ANCHOR}
    floats = Cast <to = {ir.DataType.FLOAT.value}> (product)
    of_tokens = Mul (floats, scale)
    own = Mul (of_tokens, columns)
    whole = Add (own, bias)
    anchored = Gather <axis = 0> (whole, anchor)
    base = Where (is_anchor, bias, anchored)
    output = Add (own, base)
}}""",
}


def function_proto(name: str, opset: int) -> onnx.FunctionProto:
    """Return `QUANTIZE` or `DEQUANTIZE` as a model-local function in operators of `opset` (18 or
    later)."""
    head = f'<opset_import: ["": {opset}], domain: "{DOMAIN}">'
    return onnx.parser.parse_function(head + _BODIES[name])


def add_functions(model: ir.Model) -> None:
    """Add both functions to `model`, unless it has them."""
    for name in _BODIES:
        proto = function_proto(name, model.opset_imports[""])
        model.functions.setdefault((DOMAIN, name, ""), ir.serde.deserialize_function(proto))
    model.opset_imports[DOMAIN] = VERSION
