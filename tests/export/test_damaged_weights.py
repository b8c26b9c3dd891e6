"""Weights that are no numbers."""

from __future__ import annotations

import pytest
import torch

from intaglio_export.bundle.verify import reference
from intaglio_export.errors import ExportError
from intaglio_export.graph_specs import ExportUnit, GraphSpec, TensorSpec


@pytest.mark.reported("AUTOMATIC1111/stable-diffusion-webui#10343", "vladmandic/sdnext#374")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_named_as_the_cause(value: float) -> None:
    """A part whose own outputs are NaN is called damaged, instead of a graph that differs."""
    linear = torch.nn.Linear(4, 4)
    tensors = [(TensorSpec(role, ("rows", 4)),) for role in ("latent", "prediction")]
    unit = ExportUnit(linear, GraphSpec("part/model.onnx", *tensors), {"rows": 2}, {}, {})
    assert all(case.outputs[0].isfinite().all() for case in reference(unit))
    with torch.no_grad():
        linear.weight[0, 0] = value
    with pytest.raises(ExportError, match=r"part/model.onnx .* its weights are damaged"):
        reference(unit)
