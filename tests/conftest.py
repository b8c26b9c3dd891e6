"""Fixtures of all tests, and hooks for tests that need a GPU and for the parity table.

The process that distributes the tests imports this module too, so diffusers is imported by fixtures
only: it takes several seconds.
"""

from __future__ import annotations

import ctypes
from ctypes.util import find_library
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

import intaglio
from tests.parity.table import Cell, Table

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

GPU_DEVICES = ("cuda", "tensorrt")

# These tests must not fail because the machine is slow.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

_TABLE = pytest.StashKey[Table]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-table", metavar="FILE", help="write the measured errors as a table")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = Table()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize the families' runs with their cells: all of them if a table is written."""
    if {"dtype", "layout", "mode"} <= set(metafunc.fixturenames) and metafunc.cls is not None:
        from tests.parity.family import ALL_CELLS, CELLS

        cells = ALL_CELLS if metafunc.config.getoption("--parity-table") else CELLS
        metafunc.parametrize(("dtype", "layout", "mode"), cells)


def gpu_works() -> bool:
    """Return whether this machine has a GPU with a working NVIDIA driver."""
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except OSError:
        return False


# Tests that need a GPU are collected only where there is one.
GPU = gpu_works()
collect_ignore = [] if GPU else ["gpu"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and not GPU:
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]
    # Files with long tests start first, so that the processes end together.
    marks = ("exports", "slow")
    long = {item.path for item in items if any(map(item.get_closest_marker, marks))}
    items.sort(key=lambda item: item.path not in long)


def open_on(device: str, bundle: Path) -> intaglio.Pipeline:
    """Open `bundle` on `device`. Skip the test if TensorRT is not installed. A device that is
    there but does not work is a failure."""
    if device == "tensorrt" and find_library("nvinfer") is None:
        pytest.skip("TensorRT's library is not installed")
    return intaglio.Pipeline.open(bundle, device=device, threads=1)


@pytest.fixture
def parity_table(request: pytest.FixtureRequest) -> Table:
    """Return the table of measured errors, which is written to the file of --parity-table."""
    return request.config.stash[_TABLE]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over the errors that a process of pytest-xdist measured, when it has ended."""
    for *cell, error in getattr(node, "workeroutput", {}).get("parity", ()):
        node.config.stash[_TABLE].add(Cell(*cell), error)


def pytest_sessionfinish(session: pytest.Session) -> None:
    table, path = session.config.stash[_TABLE], session.config.getoption("--parity-table")
    if hasattr(session.config, "workeroutput"):
        errors = [[*map(str, astuple(cell)), error] for cell, error in table.errors.items()]
        session.config.workeroutput["parity"] = errors
    elif path:
        Path(path).write_text(table.markdown(), encoding="utf-8")


@pytest.fixture(scope="session")
def sd3_folder() -> Path:
    """Return the folder of the tiny SD3 pipeline, with settings. One channel is massive."""
    from tests import bundles

    return bundles.source("sd3")


@pytest.fixture(scope="session")
def sd3_pipeline(sd3_folder: Path) -> StableDiffusion3Pipeline:
    """Return the same pipeline, loaded by diffusers in float32."""
    from diffusers import StableDiffusion3Pipeline

    absent = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")
    return StableDiffusion3Pipeline.from_pretrained(sd3_folder, **dict.fromkeys(absent))


def _tiny_sd3(**options: Any) -> Path:
    """Return a bundle of the tiny SD3."""
    from tests import bundles

    return bundles.bundle(**options)


@pytest.fixture(scope="session")
def forked_bundle() -> Path:
    """Return the tiny SD3 in layout forked. Tests share these bundles; copy one to change it."""
    return _tiny_sd3(layout="forked")


@pytest.fixture(scope="session")
def dual_bundle() -> Path:
    """Return the tiny SD3 in layout dual."""
    return _tiny_sd3(layout="dual")


@pytest.fixture(scope="session", params=["forked", "dual"])
def bundle(request: pytest.FixtureRequest) -> Path:
    """Return the tiny SD3 in each layout."""
    return _tiny_sd3(layout=request.param)


@pytest.fixture(scope="session", params=["forked", "dual"])
def observed_bundle(request: pytest.FixtureRequest) -> Path:
    """Return the tiny SD3 in each layout, exported with --observe."""
    return _tiny_sd3(layout=request.param, observe=True)


def onnxruntime_library() -> Path:
    """Return the library inside the Python package, for the executable outside the package."""
    import onnxruntime

    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
