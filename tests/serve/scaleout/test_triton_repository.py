"""The model repository of `intaglio deploy triton`, checked with Triton's own schema."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

import intaglio
from intaglio.deploy.triton import model_name
from intaglio.serve.api.schemas import GenerationRequest
from intaglio.serve.settings import ServerSettings
from tests.fake_bundle import make_bundle
from tests.integration.conftest import ENTRY_POINT, Command, check


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The Python entry point, which runs in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Command(ENTRY_POINT, folder)


@pytest.fixture(scope="module")
def repository(forked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    line = [ENTRY_POINT, "deploy", "triton", forked_bundle, "-o", place / "repository"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.endswith(f"; serve it: tritonserver --model-repository {place}/repository\n")
    assert list(place.iterdir()) == [place / "repository"]
    return place / "repository"


def read_config(repository: Path) -> ModelConfig:
    """Parse the configuration with Triton's schema, which rejects unknown fields."""
    (path,) = repository.glob("*/config.pbtxt")
    parsed: ModelConfig = text_format.Parse(path.read_text("utf-8"), ModelConfig())
    return parsed


def test_the_configuration_is_in_tritons_schema(repository: Path) -> None:
    config = read_config(repository)
    assert (repository / config.name / "1" / "model.py").is_file()
    assert config.backend == "python"
    assert config.max_batch_size == ServerSettings().max_batch
    assert config.HasField("dynamic_batching")
    assert [group.kind for group in config.instance_group] == [ModelInstanceGroup.KIND_MODEL]
    assert set(config.parameters) <= ServerSettings.model_fields.keys()
    inputs = {given.name: given for given in config.input}
    left_out = {"model", "n", "class_label"}
    assert set(inputs) == GenerationRequest.model_fields.keys() - left_out
    assert [name for name, given in inputs.items() if not given.optional] == ["prompt"]
    assert inputs["prompt"].data_type == DataType.TYPE_STRING
    assert list(inputs["cfg_window"].dims) == [2]
    assert {given.name for given in config.output} == {"png", "seed"}


def test_the_whole_bundle_is_copied(repository: Path, forked_bundle: Path) -> None:
    (copied,) = repository.glob("*/1/bundle")
    files = sorted(
        path.relative_to(forked_bundle) for path in forked_bundle.rglob("*") if path.is_file()
    )
    assert sorted(path.relative_to(copied) for path in copied.rglob("*") if path.is_file()) == files
    assert all(
        (copied / name).read_bytes() == (forked_bundle / name).read_bytes() for name in files
    )
    assert intaglio.Bundle.open(copied).name == read_config(repository).name


def test_its_readme_lists_the_inputs(repository: Path) -> None:
    text = (repository / "README.md").read_text("utf-8")
    for given in read_config(repository).input:
        kind = DataType.Name(given.data_type).removeprefix("TYPE_")
        assert f"| `{given.name}`" in text
        assert f" {kind} |" in text
    assert "%" not in text


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("fashion-sd3", "fashion-sd3"),
        ("a/b c", "a-b-c"),
        ("../up", "up"),
        ("\N{SNOWMAN}", "intaglio"),
    ],
)
def test_a_model_name_is_valid_in_folders_and_urls(name: str, folder: str) -> None:
    assert model_name(name) == folder


def test_a_changed_bundle_is_refused(command: Command, forked_bundle: Path) -> None:
    weights = shutil.copytree(forked_bundle, command.folder / "changed") / "transformer"
    with (weights / "weights.data").open("r+b") as file:
        file.write(b"changed")
    check(command, 3, "SHA-256 differs", "deploy", "triton", "changed", "-o", "out")


def test_a_bundle_without_encoders_is_refused(command: Command, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "text")
    check(command, 3, "has no text encoders", "deploy", "triton", bundle, "-o", "out")


def test_a_library_is_for_the_other_target(command: Command, forked_bundle: Path) -> None:
    words = ["triton", forked_bundle, "-o", "out", "--onnxruntime", "any.so"]
    check(command, 2, "--onnxruntime is for intaglio deploy folder", "deploy", *words)


def test_without_the_schema_nothing_is_written(
    command: Command, forked_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "tritonclient.py").write_text("raise ImportError('not installed')")
    says = "Triton's schema is not installed (not installed): pip install 'intaglio[triton]'"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    check(command, 4, says, "deploy", "triton", forked_bundle, "-o", "out", env=env)
