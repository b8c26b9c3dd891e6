"""Graph edits, on small graphs run by ONNX's reference evaluator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as ir
import pytest

from intaglio_export.passes.floor_division import floor_division
from intaglio_export.passes.share_weights import ALIGNMENT, share_weights
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
