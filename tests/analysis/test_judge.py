"""A judge with wrong files is refused when it is opened, and the message names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from intaglio.analysis.quality.judge import Judge
from intaglio_export.errors import ExportError


@pytest.fixture
def folder(judge_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(judge_folder, tmp_path / "judge"))


def with_about(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        about = json.loads((folder / "judge.json").read_text())
        (folder / "judge.json").write_text(json.dumps(about | changes))

    return change


def with_reference(rows: int, width: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        np.savez(
            folder / "reference.npz", features=np.random.default_rng(0).normal(size=(rows, width))
        )

    return change


def with_network(edit: Callable[[onnx.GraphProto], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        network = onnx.load(folder / "judge.onnx")
        edit(network.graph)
        onnx.save(network, folder / "judge.onnx")

    return change


def other_input(graph: onnx.GraphProto) -> None:
    graph.input[0].name = graph.node[0].input[0] = "pixels"


def five_colours(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[3].dim_value = 5


def other_output(graph: onnx.GraphProto) -> None:
    graph.output[1].name = graph.node[1].output[0] = "classes"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_about(prompts=[["a boot", 2]]), "prompt of class 2; its classes are 0 to 1"),
        (with_about(prompts=[["a boot", -1]]), "prompt of class -1"),
        (with_about(prompts=[["a boot", "red"]]), "prompt of class 'red'"),
        (with_about(prompts=[["a boot", 1.0]]), "prompt of class 1.0"),
        (with_about(prompts=[]), "is not valid"),
        (with_about(classes=["red", "green", "blue"]), r"returns logits of shape .*needs \[N, 3\]"),
        (with_reference(3, 3), r"shape \[3, 3\]; it needs more rows than features"),
        (with_reference(9, 4), r"returns features of shape .*needs \[N, 4\]"),
        (with_network(other_input), "takes pixels .*has to take only images"),
        (with_network(five_colours), "takes images .*5.*has to take only images"),
        (with_network(other_output), "it has to return features and logits"),
    ],
)
def test_what_does_not_fit_is_named(
    folder: Path, change: Callable[[Path], None], says: str
) -> None:
    Judge.open(folder)
    change(folder)
    with pytest.raises(ExportError, match=says) as raised:
        Judge.open(folder)
    assert str(folder) in raised.value.message


def test_pictures_of_a_size_that_it_does_not_take_are_named(folder: Path) -> None:
    def one_size(graph: onnx.GraphProto) -> None:
        for axis, size in ((1, 32), (2, 32)):
            graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size

    with_network(one_size)(folder)
    judge = Judge.open(folder)
    features, classes = judge.describe(np.full((2, 32, 32, 3), 0.5))
    np.testing.assert_allclose(features, 0.5)
    assert classes.shape == (2,)
    with pytest.raises(ExportError, match="does not take pictures of 16 x 24"):
        judge.describe(np.zeros((1, 16, 24, 3)))
