"""Models without CFG: DG alone is compared with no guidance, and there is no null prompt."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intaglio.analysis.experiments import baselines, comparison, effects, failures
from intaglio.analysis.experiments.gallery import Gallery
from intaglio.analysis.probe import model_probe
from intaglio.torch_reference.guidance import Method, Predictions, Suppressed
from intaglio.torch_reference.model import Model, Step
from intaglio_export.adapters import SD3Adapter
from intaglio_export.adapters.z_image import ZImageAdapter
from tests.analysis.conftest import PROMPTS, STEPS
from tests.families import z_image
from tests.families.parts import MAX_LENGTH
from tests.families.sd3 import PLANTED, make_pipeline

SETTING = Method(1.0, 0.7, Suppressed(1, (PLANTED,)))
SEEDS = range(4)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw fewer pictures than is useful."""
    monkeypatch.setattr(model_probe, "OBSERVED", 4)
    monkeypatch.setattr(model_probe, "TRIED", 8)
    monkeypatch.setattr(effects, "LEAST", 4)
    monkeypatch.setattr(baselines, "PILOT", 4)
    monkeypatch.setattr(failures, "FACTORS", (0.0, 1.0))


def make_model(null: bool) -> Model:
    return Model(SD3Adapter(make_pipeline()), PROMPTS, MAX_LENGTH, null=null)


def gallery_of(model: Model, folder: Path) -> Gallery:
    folder.mkdir()
    return Gallery(model, None, folder, STEPS, "tiny")


def test_a_model_without_null_draws_the_same() -> None:
    seen: list[torch.Tensor | None] = []

    def observe(step: Step, predictions: Predictions) -> None:
        seen.append(predictions.unconditional)

    drawn = []
    for null in (True, False):
        model = make_model(null)
        assert model.has_null is null
        drawn.append(model.sample(SETTING.predictor(model, observe), SEEDS, STEPS))
    torch.testing.assert_close(*drawn, rtol=1e-5, atol=1e-5)  # the batches differ
    assert [unconditional is None for unconditional in seen] == [False] * STEPS + [True] * STEPS


def test_the_weights_of_other_methods_need_no_null_prompt(tmp_path: Path) -> None:
    """The lengths of the terms are those that are measured beside D_0."""
    galleries = [gallery_of(make_model(null), tmp_path / str(null)) for null in (True, False)]
    beside, alone = (
        baselines.run_pilot(gallery, SETTING, baselines.negatives(gallery, SETTING, None))
        for gallery in galleries
    )
    assert alone.omega is None
    assert beside.omega is not None
    assert beside.norms.keys() == alone.norms.keys()
    for name, norm in beside.norms.items():
        assert alone.norms[name] == pytest.approx(norm, rel=1e-4)


def test_a_family_that_scales_the_result_of_cfg_has_no_omega(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = gallery_of(make_model(True), tmp_path / "pictures")
    monkeypatch.setattr(SD3Adapter, "cfg_rescale", "token")
    monkeypatch.setattr("intaglio.torch_reference.guidance.rescaled", lambda guided, _: guided)
    section = comparison.comparison_section(gallery, replace(SETTING, cfg_scale=2.0), None, 4)
    assert section.numbers["omega"] is None
    assert {"cfg", "cfg+dg"} < section.numbers["arms"].keys()
    assert "cfg at omega" not in section.numbers["arms"]
    assert "scales the result of CFG" in section.claims[0]


def test_a_distilled_model_is_probed(
    judge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Z-Image-Turbo, with a judge: only its prompts are encoded, and each row is conditional."""
    z_image.make_pipeline(shift=3.0).save_pretrained(tmp_path / "turbo")
    shutil.copytree(judge_folder, tmp_path / "turbo" / "judge")
    encoded: list[str] = []
    encode = ZImageAdapter.encode_prompts

    def watch(self: ZImageAdapter, prompts: list[str], length: int) -> Any:
        encoded.extend(prompts)
        return encode(self, prompts, length)

    monkeypatch.setattr(ZImageAdapter, "encode_prompts", watch)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"max_sequence_length": 40}))
    request = model_probe.ProbeRequest(
        str(tmp_path / "turbo"), tmp_path / "out", settings=settings, height=16, width=24,
        steps=2, images=8, seeds=4,
    )  # fmt: skip
    report = model_probe.probe(request, lambda what, share: None)
    assert set(encoded) == set(PROMPTS)
    part = report.sections[4]
    assert part.title == "Detail Guidance against no guidance"
    assert part.numbers["arms"].keys() == {
        "none", "dg", "random", "blurred", "skip-layer", "random as far 1", "random as far 2",
        "random as far 3", "no top key", "no random key",
    }  # fmt: skip
    assert all(0 < norm < np.inf for norm in part.numbers["norms"].values())
    assert part.numbers["minus_none"].keys() == part.numbers["arms"].keys() - {"none"}
    said = " ".join(claim for section in report.sections for claim in section.claims)
    assert re.search(r"dg: Fréchet distance .*; no guidance on the same seeds has", said)
    assert "CFG alone" not in said
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["cfg_scale"] == 1.0
