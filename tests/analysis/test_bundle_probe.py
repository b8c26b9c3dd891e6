"""An observed bundle is probed with the runtime, without torch, to the same result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import intaglio
from intaglio.analysis.capture import record_bundle
from intaglio.analysis.observation import record_model
from intaglio.analysis.sampler import Model
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from intaglio_export.sources import open_source
from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import PLANTED

STEPS = 3
PROMPT = "a dark boot"


@pytest.fixture(scope="module")
def observed(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output: Path = tmp_path_factory.mktemp("observed") / "bundle"
    export_bundle(ExportRequest(sd3_folder, output, observe=True))
    return output


def test_a_bundle_tells_what_its_model_does(
    observed: Path, sd3_folder: Path, tmp_path: Path
) -> None:
    pipeline = intaglio.Pipeline.open(observed, device="cpu", threads=1)
    found = record_bundle(pipeline, [PROMPT], [0, 1, 2], STEPS, tmp_path / "bundle.npz")
    adapter = open_source(sd3_folder).adapter
    model = Model(adapter, [PROMPT], MAX_LENGTH, (8, 8))
    expected = record_model(model, range(3), STEPS, tmp_path / "model.npz")
    assert found.channels().massive(1) == [PLANTED]
    np.testing.assert_allclose(found.sigmas, expected.sigmas, atol=1e-5)
    for name in ("after.mean", "after.mean_abs", "after.ratio", "gate.mean"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_the_command_needs_no_torch(observed: Path, tmp_path: Path) -> None:
    code = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "diffusers", "transformers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from intaglio.__main__ import main
sys.argv = ["intaglio", "probe", {str(observed)!r}, "-o", {str(tmp_path)!r}, "--steps", "2"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f": {PLANTED} after blocks 0-3." in done.stdout.replace("\n", " ").replace("  ", " ")
    html = (tmp_path / "index.html").read_text("utf-8")
    assert html.count("<h2>") == 3


def test_a_bundle_that_is_not_observed_says_the_way_out(
    forked_bundle: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "intaglio", "probe", forked_bundle, "-o", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert "export it again with --observe" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
