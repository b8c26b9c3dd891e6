"""One tiny pipeline and its bundles, exported once a session."""

from __future__ import annotations

import ctypes
import json
import os
from ctypes.util import find_library
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusion3Pipeline
from filelock import FileLock
from hypothesis import HealthCheck, settings

import intaglio
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import make_pipeline
from tests.parity.table import Cell, Table

SETTINGS = {
    "block": 1,
    "steps": 4,
    "cfg_scale": 2.0,
    "dg_scale": 0.5,
    "keep": 0.0,
    "height": 32,
    "width": 32,
    "max_sequence_length": MAX_LENGTH,
}


GPU_DEVICES = ("cuda", "ort-tensorrt")

# A loaded machine is slow, and that is not what these tests are about.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

_TABLE = pytest.StashKey[Table]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-table", metavar="FILE", help="write the measured errors as a table")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = Table()


def no_gpu() -> str:
    """Why this machine has no usable GPU; empty when it has."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 is not there"
    if code := driver.cuInit(0):
        return f"no usable GPU: the driver's cuInit gave error {code}"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := no_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))


def open_on(device: str, bundle: Path) -> intaglio.Pipeline:
    """`bundle` on `device`. Skips where TensorRT is not installed; what is there and does not work
    is a failure."""
    if device == "ort-tensorrt" and find_library("nvinfer") is None:
        pytest.skip("TensorRT's library is not installed")
    return intaglio.Pipeline.open(bundle, device=device, threads=1)


@pytest.fixture
def parity_table(request: pytest.FixtureRequest) -> Table:
    """What the parity tests measure; goes to the file of --parity-table at the end."""
    return request.config.stash[_TABLE]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended: take over what it measured."""
    for *cell, error in getattr(node, "workeroutput", {}).get("parity", ()):
        node.config.stash[_TABLE].add(Cell(*cell), error)


def pytest_sessionfinish(session: pytest.Session) -> None:
    table, path = session.config.stash[_TABLE], session.config.getoption("--parity-table")
    if hasattr(session.config, "workeroutput"):
        errors = [[*astuple(cell), error] for cell, error in table.errors.items()]
        session.config.workeroutput["parity"] = errors
    elif path:
        Path(path).write_text(table.markdown(), encoding="utf-8")


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as save_pretrained writes it, with settings; one channel is massive.

    It and the bundles beside it are made once for all processes of pytest-xdist.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny/tiny-sd3"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "settings.json").exists():
            make_pipeline().save_pretrained(folder)
            (folder / "settings.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="session")
def sd3_pipeline(sd3_folder: Path) -> StableDiffusion3Pipeline:
    """The same, loaded back by diffusers in float32."""
    absent = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")
    return StableDiffusion3Pipeline.from_pretrained(sd3_folder, **dict.fromkeys(absent))


def export(source: Path, layout: str, observe: bool = False) -> Path:
    """`source` exported into a folder beside it, unless it is there."""
    output = source.parent / (f"{layout}-observed" if observe else layout)
    with FileLock(f"{output}.lock"):
        if not output.exists():
            export_bundle(ExportRequest(source, output, layout=layout, observe=observe))
    return output


@pytest.fixture(scope="session")
def forked_bundle(sd3_folder: Path) -> Path:
    return export(sd3_folder, "forked")


@pytest.fixture(scope="session")
def dual_bundle(sd3_folder: Path) -> Path:
    return export(sd3_folder, "dual")


@pytest.fixture(scope="session", params=["forked", "dual"])
def bundle(request: pytest.FixtureRequest) -> Path:
    """The tiny pipeline's bundle, in each layout."""
    path: Path = request.getfixturevalue(f"{request.param}_bundle")
    return path


@pytest.fixture(scope="session", params=["forked", "dual"])
def observed_bundle(request: pytest.FixtureRequest, sd3_folder: Path) -> Path:
    """The same, exported with --observe."""
    return export(sd3_folder, request.param, observe=True)


def onnxruntime_library() -> Path:
    """The library that the Python package carries; for the executable outside the package."""
    import onnxruntime

    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
