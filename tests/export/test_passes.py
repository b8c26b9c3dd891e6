"""Graph edits, on small graphs run by ONNX's reference evaluator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as ir
import pytest
import torch

from intaglio_export.passes.floor_division import floor_division
from intaglio_export.passes.norms_of_one_type import norms_of_one_type
from intaglio_export.passes.share_weights import ALIGNMENT, share_weights
from intaglio_export.passes.split_in_groups import MOST_OUTPUTS, split_in_groups
from intaglio_export.passes.strip_metadata import strip_metadata


@pytest.mark.parametrize(("a", "b"), [(7, 2), (-7, 2), (-3, 2), (6, 3), (-6, 3), (0, 5), (7, -2)])
def test_sizes_are_divided_as_in_python(a: int, b: int) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]>
        g (int64 a, int64 b) => (int64 q) { q = Div(a, b) }"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    model.graph.outputs[0].dtype = ir.DataType.INT64
    floor_division(model)
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    evaluator = onnx.reference.ReferenceEvaluator(proto)
    (quotient,) = evaluator.run(None, {"a": np.array(a), "b": np.array(b)})
    assert quotient == a // b


def test_a_norm_has_the_type_of_its_scale() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]>
        g (float16[2, 8] x, float[8] scale) => (float[2, 8] y)
        { y = RMSNormalization <epsilon = 0.001> (x, scale) }"""
    given = onnx.parser.parse_model(text)
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.checker.check_model(given, full_check=True)
    model = ir.serde.deserialize_model(given)
    norms_of_one_type(model)
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 8)).astype(np.float16)
    scale = draw.standard_normal(8).astype(np.float32)
    (got,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x, "scale": scale})
    wide = torch.from_numpy(x).float()
    want = torch.nn.functional.rms_norm(wide, (8,), torch.from_numpy(scale), eps=0.001)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize("parts", [7, 8, 13, 60])
def test_a_wide_split_is_divided_and_its_parts_stay(parts: int) -> None:
    sizes = [1 + index % 3 for index in range(parts)]
    names = [f"p{index}" for index in range(parts)]
    outputs = ", ".join(f"float[2, {size}] y_{n}" for n, size in zip(names, sizes, strict=True))
    parts_of_x = list(zip(names, sizes, strict=True))
    typed = ", ".join(f"float[2, {size}] {name}" for name, size in parts_of_x[1:])
    # The first part is an output of the graph itself, as an observed gate is.
    names[0] = "y_p0"
    copies = " ".join(f"y_{name} = Relu({name})" for name in names[1:])
    text = f"""<ir_version: 10, opset_import: ["": 23]>
        g (float[2, {sum(sizes)}] x) => ({outputs})
        <int64[{parts}] sizes = {{{", ".join(map(str, sizes))}}}, {typed}>
        {{ {", ".join(names)} = Split <axis = 1> (x, sizes) {copies} }}"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    split_in_groups(model)
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    widths = [len(node.output) for node in proto.graph.node if node.op_type == "Split"]
    assert max(widths) <= MOST_OUTPUTS
    x = np.random.default_rng(0).standard_normal((2, sum(sizes))).astype(np.float32)
    got = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})
    want = np.split(x, np.cumsum(sizes)[:-1], axis=1)
    want[1:] = [np.maximum(part, 0) for part in want[1:]]
    for part, right in zip(got, want, strict=True):
        np.testing.assert_array_equal(part, right)


def test_parts_of_a_wide_split_may_be_outputs_of_the_graph() -> None:
    names = [f"p{index}" for index in range(9)]
    text = f"""<ir_version: 10, opset_import: ["": 23]>
        g (float[9] x) => ({", ".join(f"float[1] {name}" for name in names)})
        {{ {", ".join(names)} = Split <axis = -1, num_outputs = 9> (x) }}"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    split_in_groups(model)
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [output.name for output in proto.graph.output] == names
    assert max(len(node.output) for node in proto.graph.node) <= MOST_OUTPUTS
    got = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": np.arange(9, dtype=np.float32)})
    np.testing.assert_array_equal(np.concatenate(got), np.arange(9))


def weighted(name: str, *arrays: np.ndarray) -> ir.Model:
    """A model that does nothing but hold `arrays`."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23}, name=name)
    for number, array in enumerate(arrays):
        tensor = ir.tensor(array, name=f"{name}{number}")
        graph.register_initializer(ir.Value(name=tensor.name, const_value=tensor))
    return ir.Model(graph, ir_version=10)


def test_equal_weights_of_two_graphs_are_stored_once(tmp_path: Path) -> None:
    big = np.arange(1024, dtype=np.float32).reshape(32, 32)
    small = np.ones(4, np.float32)
    one, two = weighted("one", big, small), weighted("two", big.copy(), big.T, big.astype("int64"))
    share_weights([one, two], tmp_path)
    stored = [v.const_value for m in (one, two) for v in m.graph.initializers.values()]
    external = [t for t in stored if isinstance(t, ir.ExternalTensor)]
    assert len(external) == 4
    assert external[0].offset == external[1].offset
    assert len({t.offset for t in external}) == 3
    assert all(t.offset is not None and t.offset % ALIGNMENT == 0 for t in external)
    np.testing.assert_array_equal(external[2].numpy(), big.T)
    assert (tmp_path / "weights.data").stat().st_size < 5 * ALIGNMENT


def test_metadata_goes() -> None:
    model = weighted("g", np.ones(2, np.float32))
    model.metadata_props["source"] = "/home/somebody"
    model.graph.initializers["g0"].metadata_props["trace"] = "/home/somebody/file.py"
    strip_metadata(model)
    assert b"/home" not in ir.serde.serialize_model(model).SerializeToString()
