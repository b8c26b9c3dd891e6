"""Python processes of other kinds than a plain script: no terminal, several interpreters or
versions of ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from packaging.version import Version

import intaglio
from intaglio.onnxruntime_library import onnxruntime_library
from tests.conftest import onnxruntime_library as installed_library
from tests.integration.conftest import build_of_onnxruntime
from tests.python.conftest import PROMPT


@pytest.mark.reported("tqdm/tqdm#1033", "Textualize/rich#1591")
def test_a_bar_that_cannot_be_shown_costs_no_picture(
    forked: intaglio.Pipeline, forked_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A progress bar on a stderr that is closed, or that nobody reads, ends no run."""
    expected = forked.generate(PROMPT, steps=1).latents
    closed = open(os.devnull, "w")  # noqa: PTH123, SIM115
    closed.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", closed)
        drawn = forked.generate(PROMPT, steps=1, progress=True)
    np.testing.assert_array_equal(drawn.latents, expected)
    code = (
        "import sys, intaglio\n"
        "print('before')\n"
        f"intaglio.Pipeline.open(sys.argv[1]).generate({PROMPT!r}, steps=1, progress=True)\n"
        "print('after')"
    )
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "-c", code, str(forked_bundle)]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=writing, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, "before\nafter\n")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="pybind11 refuses by itself")
@pytest.mark.reported("pybind/pybind11#1975", "PyO3/pyo3#1028")
def test_another_interpreter_is_refused() -> None:
    """An import in a second interpreter of the process, as under mod_wsgi, does not hang."""
    code = (
        "import _xxsubinterpreters as interpreters\n"
        "interpreters.run_string(interpreters.create(), 'import intaglio')"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert "intaglio can be imported in the main interpreter of a process only" in done.stderr


@pytest.mark.reported("microsoft/onnxruntime#7930", "yolain/ComfyUI-Easy-Use#955")
def test_the_newest_of_several_libraries_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the libraries that onnxruntime and onnxruntime-gpu left in one folder, the newest runs."""
    folder = tmp_path / "onnxruntime" / "capi"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    versions = ["1.9.0", "1.10.0", "1.22.1", "1.3.1"]
    for version in versions:
        (folder / f"libonnxruntime.so.{version}").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert onnxruntime_library() == folder / f"libonnxruntime.so.{max(versions, key=Version)}"


@pytest.mark.reported("microsoft/onnxruntime#7930")
def test_the_build_for_gpus_is_used_where_pip_put_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`intaglio[cuda]` brings both, and the one without CUDA is newer."""
    folder = tmp_path / "onnxruntime" / "capi"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    gpu = build_of_onnxruntime("gpu")
    for library in (gpu, installed_library()):
        (folder / library.name).symlink_to(library)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert onnxruntime_library() == folder / gpu.name


@pytest.mark.reported("huggingface/transformers#12904")
def test_a_module_in_the_place_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without a package, as tests put one into sys.modules, is no library and no error."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    assert onnxruntime_library() is None
