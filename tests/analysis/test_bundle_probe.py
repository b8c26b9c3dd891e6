"""Probing an observed bundle needs no torch and gives the same numbers as the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import intaglio
from intaglio.analysis.channels.model_recorder import record_model
from intaglio.analysis.channels.recorder import record_bundle
from intaglio.analysis.report.output_folder import read_prompts
from intaglio.torch_reference.model import Model
from intaglio_export.sources import open_source
from tests.analysis.conftest import Command
from tests.bundles import bundle
from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import PLANTED

STEPS = 3
PROMPT = "a dark boot"


@pytest.fixture(scope="module")
def observed() -> Path:
    return bundle(observe=True)


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


def run_without_torch(*args: object) -> subprocess.CompletedProcess[str]:
    """Run `intaglio probe` as if torch and the packages that need it were not installed."""
    code = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "diffusers", "transformers"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from intaglio.__main__ import main
sys.argv = {["intaglio", "probe", *map(str, args)]!r}
main()
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_command_needs_no_torch(observed: Path, tmp_path: Path) -> None:
    done = run_without_torch(observed, "-o", tmp_path, "--steps", 4)
    assert done.returncode == 0, done.stderr
    assert f": {PLANTED} after blocks 0-3." in done.stdout.replace("\n", " ").replace("  ", " ")
    html = (tmp_path / "index.html").read_text("utf-8")
    assert html.count("<h2>") == 3


def test_a_model_needs_torch(sd3_folder: Path, tmp_path: Path) -> None:
    done = run_without_torch(sd3_folder, "-o", tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert "the Python package torch" in done.stderr
    assert 'pip install "intaglio[export,probe]"' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--height", "64"], 2, "--height does not apply to a bundle"),
        (["--cfg-scale", "2"], 2, "--cfg-scale does not apply to a bundle"),
        (["--judge", "judge"], 2, "--judge does not apply to a bundle"),
        (["--images", "136"], 2, "--images does not apply to a bundle"),
        (["--steps", "20000"], 2, "20000"),
        (["--prompts", "nowhere.txt"], 3, "--prompts nowhere.txt cannot be read"),
    ],
)
def test_mistakes_are_named(
    args: list[str], code: int, says: str, observed: Path, tmp_path: Path, command: Command
) -> None:
    found, out, err = command(observed, "-o", tmp_path, *args)
    assert (found, says in err, out) == (code, True, ""), err
    assert err.splitlines()[-1].startswith("intaglio: ")


def test_prompts_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a boot\n\na coat\n", "utf-8-sig")
    assert read_prompts(path) == ["a boot", "a coat"]


def test_a_bundle_that_is_not_observed_says_the_way_out(
    forked_bundle: Path, tmp_path: Path, command: Command
) -> None:
    code, _, err = command(forked_bundle, "-o", tmp_path)
    assert code == 3
    assert "export it again with --observe" in err
    assert err.splitlines()[-1].startswith("intaglio: ")


def test_a_bundle_without_text_encoders_is_refused(
    observed: Path, tmp_path: Path, command: Command
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(observed, copy)
    manifest = json.loads((copy / "bundle.json").read_text("utf-8"))
    prompt = manifest["prompt"]
    prompt |= {"encoders": {}, "pooled": []}
    for segment in prompt["text"]:
        segment["encoders"] = []
    (copy / "bundle.json").write_text(json.dumps(manifest))
    code, _, err = command(copy, "-o", tmp_path / "out")
    assert (code, "has no text encoders" in err) == (3, True), err
    assert err.splitlines()[-1].startswith("intaglio: ")


def test_classes_are_called_so(tmp_path: Path, command: Command) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.json").write_text("{}")  # from an earlier probe of the model
    code, _, err = command(bundle("dit", observe=True), "-o", tmp_path / "out", "--steps", 4)
    assert code == 0, err
    page = (tmp_path / "out/report.md").read_text("utf-8")
    assert "“class 0”: the clean image" in page
    assert "3 classes, 4 seeds" in page
    assert not (tmp_path / "out/settings.json").exists()
