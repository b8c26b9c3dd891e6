"""DeltaQuantize and DeltaDequantize: kernels, function bodies and ONNX's reference evaluator."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from intaglio_export.passes.delta_coding import DEQUANTIZE, QUANTIZE, function_proto
from tests.integration.test_kernel import OPSET, Arrays, assert_same_bits, open_session

OUTPUTS = ["quantized", "scale", "y"]


@cache
def model() -> onnx.ModelProto:
    """A product of x [F, T, K] with integers, whose sizes are all dynamic."""
    made = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : {OPSET}, "ai.intaglio" : 1]>
        g (float[F, T, K] x, int64[F] anchor, float[K] kept, int8[K, N] weight, float[N] columns,
           float[N] bias)
            => (uint8[F, T, K] quantized, float[F, T, o] scale, float[F, T, N] y)
        {{ quantized, scale = ai.intaglio.{QUANTIZE} (x, anchor, kept)
           zero = Constant <value = uint8 {{128}}> ()
           product = MatMulInteger (quantized, weight, zero)
           y = ai.intaglio.{DEQUANTIZE} (product, scale, columns, bias, anchor) }}""")
    made.functions.extend(function_proto(name, OPSET) for name in (QUANTIZE, DEQUANTIZE))
    onnx.checker.check_model(made, full_check=True)
    return made


@cache
def session(kernel: bool, threads: int = 1) -> ort.InferenceSession:
    return open_session(model().SerializeToString(), kernel, threads=threads)


@st.composite
def products(draw: st.DrawFn) -> Arrays:
    """Rows of one or more images, from one token to several tasks of the kernel."""
    anchors = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(len))
    others = draw(st.lists(st.integers(0, anchors - 1), max_size=4))
    tokens = draw(st.one_of(st.integers(1, 9), st.integers(60, 140)))
    k, n = draw(st.integers(1, 37)), draw(st.integers(1, 19))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    anchor = np.array([*range(anchors), *others])
    sizes = 10.0 ** random.integers(-4, 4, (tokens, 1))
    x = random.normal(size=(len(anchor), tokens, k)) * sizes
    x[random.random(x.shape[:2]) < 0.1] = 0.0
    alike = random.random(len(anchor)) < 0.5
    x[alike] = x[anchor][alike]  # a difference of zeros
    return {
        "x": x.astype(np.float32),
        "anchor": anchor,
        "kept": (random.random(k) < 0.8).astype(np.float32),
        "weight": random.integers(-127, 128, (k, n)).astype(np.int8),
        "columns": random.random(n).astype(np.float32),
        "bias": random.normal(size=n).astype(np.float32),
    }


@settings(max_examples=100, deadline=None)
@given(products())
def test_all_implementations_agree_bit_for_bit(inputs: Arrays) -> None:
    want = ReferenceEvaluator(model()).run(OUTPUTS, inputs)
    for kernel, threads in ((True, 1), (True, 2), (False, 1)):
        got = session(kernel, threads).run(OUTPUTS, inputs)
        np.testing.assert_array_equal(got[0], want[0])
        for one, other in zip(got[1:], want[1:], strict=True):
            assert_same_bits(one, other)


@settings(max_examples=100, deadline=None)
@given(products())
def test_the_product_is_that_of_floats_within_half_a_step(inputs: Arrays) -> None:
    """Against NumPy in float64: of each row that is coded, half a step in each channel."""
    x, anchor, kept = (inputs[name] for name in ("x", "anchor", "kept"))
    weight = inputs["weight"] * inputs["columns"].astype(np.float64)
    got = session(True).run(["y"], inputs)[0]
    own = (anchor == np.arange(len(anchor)))[:, None, None]
    x = x.astype(np.float64)
    coded = np.where(own, x, x - x[anchor]) * kept
    step = np.abs(coded).max(-1, keepdims=True) / 127
    step += np.where(own, 0.0, step[anchor])
    bound = 0.501 * step * np.abs(weight).sum(0) + 1e-5 * np.abs(x).max() * np.abs(weight).sum(0)
    assert (np.abs(got - (x * kept) @ weight - inputs["bias"]) <= bound).all()


@settings(max_examples=30, deadline=None)
@given(products())
def test_other_rows_change_nothing(inputs: Arrays) -> None:
    """Each row alone, beside its anchor, is what it is among the others."""
    whole = session(True).run(["y"], inputs)[0]
    for row, anchor in enumerate(inputs["anchor"]):
        rows = sorted({row, int(anchor)})
        some = {"x": inputs["x"][rows], "anchor": np.full(len(rows), rows.index(anchor))}
        if len(rows) == 2:
            some["anchor"][rows.index(row)] = rows.index(anchor)
        assert_same_bits(session(True).run(["y"], inputs | some)[0], whole[rows])


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 1])
def test_what_is_not_finite_stays_so(odd: float, row: int) -> None:
    inputs: Arrays = {
        "x": np.ones((2, 3, 8), np.float32),
        "anchor": np.array([0, 0]),
        "kept": np.ones(8, np.float32),
        "weight": np.ones((8, 4), np.int8),
        "columns": np.ones(4, np.float32),
        "bias": np.ones(4, np.float32),
    }
    inputs["x"][row, 1, 5] = odd
    finite = np.isfinite(session(True).run(["y"], inputs)[0]).all(-1)
    assert finite.tolist() == [[True, row != 0, True], [True, False, True]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("anchor", np.array([0, 2]), r"anchor\[1\] is 2, which is not a row that is its own"),
        ("anchor", np.array([-1, 1]), r"anchor\[0\] is -1"),
        ("anchor", np.array([1, 0]), r"anchor\[0\] is 1"),
        ("anchor", np.array([0, 1, 2]), r"anchor is \[3\], which does not fit"),
        ("kept", np.ones(3, np.float32), r"kept is \[3\], which does not fit"),
        ("columns", np.ones(5, np.float32), r"columns is \[5\], which does not fit"),
        ("bias", np.ones(1, np.float32), r"bias is \[1\], which does not fit"),
    ],
)
def test_kernels_refuse_what_does_not_fit(
    name: str, value: np.ndarray[Any, Any], message: str
) -> None:
    loose = onnx.ModelProto.FromString(model().SerializeToString())
    for tensor in loose.graph.input:  # equal names of axes would make ONNX Runtime warn first
        for axis in tensor.type.tensor_type.shape.dim:
            axis.ClearField("dim_param")
    inputs: Arrays = {
        "x": np.ones((2, 3, 8), np.float32),
        "anchor": np.array([0, 0]),
        "kept": np.ones(8, np.float32),
        "weight": np.ones((8, 4), np.int8),
        "columns": np.ones(4, np.float32),
        "bias": np.ones(4, np.float32),
    }
    opened = open_session(loose.SerializeToString(), kernel=True)
    opened.run(["y"], inputs)
    with pytest.raises(Exception, match=message):
        opened.run(["y"], inputs | {name: value})
