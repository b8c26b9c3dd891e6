"""Programs that are prepared in place give what torch computes, also where they end in a change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from intaglio_export.tracing.decomposition import prepared_in_place

LAST: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "to": lambda x: x.to(torch.float64),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(2, (2, 3)),
    "add_": lambda x: (x * 2).add_(x),
    "outer": lambda x: torch.outer(x[0, 0], x[0, 1]) + x[0, 0],
}


class Ending(torch.nn.Module):
    def __init__(self, last: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x * 3 - 1)


@pytest.mark.parametrize("name", LAST)
def test_a_program_equals_torch(name: str, tmp_path: Path) -> None:
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    module = Ending(LAST[name]).eval()
    with prepared_in_place():
        program = torch.onnx.export(module, (x,), dynamo=True, opset_version=23, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    evaluator = ReferenceEvaluator(onnx.load(tmp_path / "model.onnx"))
    (got,) = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    np.testing.assert_allclose(got, module(x).numpy(), rtol=1e-6, atol=1e-6)
