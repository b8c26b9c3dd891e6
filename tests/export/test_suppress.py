"""The op in torch, in ONNX's reference evaluator and in ONNX Runtime, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.reference
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio_export.networks import suppress
from intaglio_export.networks.suppress import ma_suppress
from intaglio_export.tracing.trace import OPSET

INPUTS = (*suppress.INPUTS, suppress.SOURCE)
GOLDEN = Path(__file__).parents[1] / "data" / "ma_suppress"


def golden(name: str) -> np.ndarray:
    array: np.ndarray = np.load(GOLDEN / f"{name}.npy")
    return array


def first_rows() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The rows that a graph of version 1 has, and their output."""
    inputs = {name: golden(name) for name in suppress.INPUTS}
    inputs |= {name: inputs[name][:7] for name in ("branch", "keep")}
    return inputs, golden("output")[:7]


def model(version: int = 2) -> onnx.ModelProto:
    """A graph of the op alone, with its function."""
    float_, int_ = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    axes = {"hidden": "BTC", "mask": "C", "ref": "C", "branch": "F", "keep": "FT"}
    if version == 2:
        axes["source"] = "FT"
    inputs = [
        onnx.helper.make_tensor_value_info(
            n, int_ if n in ("branch", "source") else float_, list(a)
        )
        for n, a in axes.items()
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(suppress.NAME, list(axes), ["output"], domain=suppress.DOMAIN)],
        "op",
        inputs,
        [onnx.helper.make_tensor_value_info("output", float_, ["F", "T", "C"])],
    )
    opsets = [
        onnx.helper.make_opsetid("", OPSET),
        onnx.helper.make_opsetid(suppress.DOMAIN, version),
    ]
    function = suppress.function_proto(OPSET, with_source=version == 2)
    made = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype == np.float32
    # NaN too must be the very same where the op only copies; elsewhere any NaN will do.
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_torch_gives_the_golden_output() -> None:
    inputs = {name: torch.from_numpy(golden(name)) for name in INPUTS}
    assert_same_bits(ma_suppress(**inputs).numpy(), golden("output"))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_onnx_reference_gives_the_golden_output() -> None:
    feeds = {name: golden(name) for name in INPUTS}
    (got,) = onnx.reference.ReferenceEvaluator(model()).run(None, feeds)
    assert_same_bits(got, golden("output"))


def test_onnxruntime_gives_the_golden_output_up_to_the_sign_of_zero() -> None:
    session = ort.InferenceSession(model().SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {name: golden(name) for name in INPUTS})
    # ONNX Runtime's Where gives 0.0 for -0.0 on the CPU; adding 0.0 does the same to the golden.
    assert_same_bits(got + 0.0, golden("output") + 0.0)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_without_a_source_the_output_is_that_of_version_1() -> None:
    inputs, expected = first_rows()
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    assert_same_bits(ma_suppress(**given).numpy(), expected)
    (got,) = onnx.reference.ReferenceEvaluator(model(version=1)).run(None, inputs)
    assert_same_bits(got, expected)


def test_scale_and_offset_are_keep_and_ref() -> None:
    """SPARK (arXiv 2609.03813): gamma z + beta on the masked channels."""
    hidden = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1))
    mask, beta = torch.tensor([1.0, 0, 0, 1, 0, 0]), torch.arange(6.0)
    for gamma in (1.5, 0.25, -1.0):
        keep = torch.full((1, 4), gamma)
        got = ma_suppress(hidden, mask, beta / (1 - gamma), torch.tensor([0]), keep)
        want = torch.where(mask == 1, gamma * hidden + beta, hidden)
        torch.testing.assert_close(got, want)


def test_tokens_are_shuffled_by_source() -> None:
    """TPG (arXiv 2506.10036): whole tokens of a row in another order."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, 5, 3, generator=generator)
    order = torch.randperm(5, generator=generator)
    got = ma_suppress(
        hidden, torch.ones(3), torch.zeros(3), torch.tensor([0, 1, 1]),
        torch.tensor([1.0, 1.0, 0.0]).unsqueeze(1).expand(3, 5),
        torch.stack([torch.zeros_like(order), torch.zeros_like(order), 1 + 5 + order]),
    )  # fmt: skip
    torch.testing.assert_close(got, torch.stack([hidden[0], hidden[1], hidden[1, order]]))


def test_untouched_places_are_copied_bit_for_bit() -> None:
    hidden, branch = golden("hidden"), golden("branch")
    a = golden("mask") * (1 - golden("keep")[..., None])
    same = np.broadcast_to(a == 0, golden("output").shape)
    expected = hidden[branch].view(np.uint32)[same]
    np.testing.assert_array_equal(golden("output").view(np.uint32)[same], expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_keep_0_gives_ref_and_keep_1_gives_hidden(b: int, t: int, c: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, ref = torch.randn(b, t, c, generator=generator), torch.randn(c, generator=generator)
    branch = torch.randint(b, (4,), generator=generator)
    everywhere = torch.ones(c)
    kept = ma_suppress(hidden, everywhere, ref, branch, torch.ones(4, t))
    torch.testing.assert_close(kept, hidden[branch], rtol=0, atol=0)
    gone = ma_suppress(hidden, everywhere, ref, branch, torch.zeros(4, t))
    torch.testing.assert_close(gone, ref.expand(4, t, c), rtol=0, atol=0)


def test_a_branch_outside_the_rows_is_an_error() -> None:
    with pytest.raises(IndexError):
        ma_suppress(
            torch.zeros(2, 1, 1),
            torch.zeros(1),
            torch.zeros(1),
            torch.tensor([2]),
            torch.ones(1, 1),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_stream_keeps_its_type(dtype: torch.dtype) -> None:
    out = ma_suppress(
        torch.ones(1, 2, 3, dtype=dtype), torch.ones(3), torch.zeros(3), torch.tensor([0]),
        torch.full((1, 2), 0.5),
    )  # fmt: skip
    assert out.dtype == dtype
    assert out.eq(0.5).all()
