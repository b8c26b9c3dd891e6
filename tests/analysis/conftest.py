"""A tiny model with a planted massive channel, and a judge for its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from intaglio.__main__ import GROUP, run_python
from intaglio.torch_reference.model import Model
from intaglio_export.adapters import SD3Adapter
from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import make_pipeline

PROMPTS = ["a dark boot", "a red dress", "the shirt", "a shoe with an and"]
STEPS = 3
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_model(planted: bool = True, seed: int = 0) -> Model:
    adapter = SD3Adapter(make_pipeline(planted=planted, seed=seed))
    return Model(adapter, PROMPTS, MAX_LENGTH)


@pytest.fixture(scope="session")
def model() -> Model:
    return make_model()


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge with mean red, green and blue as features; the class is red or green."""
    folder = tmp_path_factory.mktemp("judged") / "judge"
    folder.mkdir()
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["features"], keepdims=0),
        helper.make_node("Gather", ["features", "two"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "judge",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", "H", "W", 3])],
        [
            helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 2]),
        ],
        [
            numpy_helper.from_array(np.array([1, 2]), "axes"),
            numpy_helper.from_array(np.array([0, 1]), "two"),
        ],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(network, folder / "judge.onnx")
    about = {"classes": ["red", "green"], "prompts": [[p, i % 2] for i, p in enumerate(PROMPTS)]}
    (folder / "judge.json").write_text(json.dumps(about))
    reference = np.random.default_rng(0).uniform(size=(50, 3))
    np.savez(folder / "reference.npz", features=reference.astype(np.float16))
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `intaglio probe` in this process and return its exit code, stdout and stderr."""
    (entry,) = entry_points(group=GROUP, name="probe")

    def run(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_python(entry, [str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run
