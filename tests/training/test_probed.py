"""The programs behind the shipped model's report: judge, weaker model, quick pictures, features.

They run on the tiny model, with few images and steps.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from intaglio.analysis.block_features import RECIPES
from intaglio.analysis.experiments import baselines
from intaglio.analysis.experiments.gallery import Gallery
from intaglio.analysis.guidance.dg_settings import method_from_settings
from intaglio.analysis.guidance.negatives import Weaker
from intaglio.analysis.quality.judge import Judge
from intaglio.analysis.report.output_folder import PICTURES
from intaglio.torch_reference.fingerprint import identity
from intaglio.torch_reference.model import Model
from intaglio_export.options import read_settings
from intaglio_export.sources import open_source
from models.training import classifier, data, features, judge, report, text, weaker

pytestmark = pytest.mark.exports

STEPS = 2
IMAGES = 4


@pytest.fixture(scope="module")
def few() -> Any:
    """Limit every split to 200 images."""
    whole = data.load_split

    def limited(folder: Path, split: str, limit: int | None = None) -> data.Split:
        return whole(folder, split, limit or 200)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_split", limited)
        patch.setattr(baselines, "PILOT", 4)
        yield


@pytest.fixture(scope="module")
def model(tiny: tuple[Path, Path], few: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with random weights for zeros, and its judge, settings and weaker model."""
    base = tmp_path_factory.mktemp("probed")
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        tiny[0], text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in pipeline.transformer.named_parameters():
            if "norm" in name or "proj_out" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    pipeline.save_pretrained(base / "model")
    settings = {"block": 1, "channels": [3, 40], "cfg_scale": 2.0, "dg_scale": 0.5}
    (base / "model/settings.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    state = {"model": classifier.Classifier().state_dict(), "accuracy": 0.1}
    torch.save(state, base / "classifier.pt")
    assert judge.main(["--model", str(base / "model"), "--work", str(base)]) == 0
    how = {"minutes": 0.02, "batch": 8, "width": 32, "blocks": 2, "threads": 1, "limit": 100}
    words = [word for name, value in how.items() for word in (f"--{name}", str(value))]
    assert weaker.main(["--model", str(base / "model"), *words]) == 0
    return base / "model"


def test_the_judge_is_the_classifier(model: Path) -> None:
    opened = Judge.open(model / "judge")
    network, accuracy = classifier.load(model.parent)
    assert accuracy == 0.1
    pixels = data.to_pixels(data.load_split(data.DEFAULT_DATA, "t10k").images)[:5]
    expected, classes = classifier.describe(network, pixels)
    images = (pixels / 2 + 0.5).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    found, seen = opened.describe(images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(seen, classes)
    np.testing.assert_allclose(opened.reference[:5], expected, rtol=1e-2, atol=1e-3)
    assert len(opened.reference) == 200
    assert opened.prompts[13] == data.caption(3, judge.TONES[1])
    assert opened.labels.tolist() == [*range(10)] * 4


def test_the_weaker_model_goes_with_it(model: Path) -> None:
    adapter = open_source(model).adapter
    opened = Weaker.open(model / "weaker", adapter)
    ours, theirs = (
        sum(p.numel() for p in transformer.parameters())
        for transformer in (adapter.transformer, opened.transformer)
    )
    assert theirs < ours / 2
    # The output layer starts at zero, and training changes it.
    assert opened.transformer.proj_out.weight.abs().max() > 0


def test_quicker_pictures_are_those_of_the_probe(model: Path, few: Any, tmp_path: Path) -> None:
    args = ["--model", str(model), "-o", str(tmp_path), "--images", str(IMAGES)]
    args += ["--steps", str(STEPS), "--threads", "1"]
    assert report.main(args) == 0
    adapter = open_source(model).adapter
    opened = Judge.open(model / "judge")
    plain = Model(adapter, opened.prompts, text.MAX_SEQUENCE_LENGTH)
    (tmp_path / "plain").mkdir()
    gallery = Gallery(plain, opened, tmp_path / "plain", STEPS, identity(plain))
    setting = method_from_settings(read_settings(model / "settings.json"), adapter)
    assert setting is not None
    beside = Weaker.open(model / "weaker", adapter)
    others = baselines.negatives(gallery, setting, beside)
    pilot = baselines.run_pilot(gallery, setting, others)
    methods = baselines.methods_to_compare(gallery, setting, pilot, others)
    names = baselines.names_at(setting.cfg_scale)
    for name in ("none", "cfg", "cfg+dg", "cfg+autoguidance"):
        gallery.draw(methods[name], names.seeds(name, IMAGES), omega=methods[name].guided)
    drawn = sorted((tmp_path / "plain").iterdir())
    assert len(drawn) == 10 + 4  # 10 of the pilot and 4 of the methods
    quicker = [path for path in drawn if (tmp_path / PICTURES / path.name).exists()]
    assert len(quicker) == len(drawn) - 2  # all but those with hidden keys
    for path in quicker:
        found, expected = np.load(tmp_path / PICTURES / path.name), np.load(path)
        assert set(found) == set(expected)
        # These are measured before pictures are rounded to 8 bits; then come the rounded pictures.
        for key in {"saturation", "features", "omega"} & set(found):
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-4, atol=1e-4)
        assert np.abs(found["images"].astype(int) - expected["images"]).max() <= 1


@pytest.mark.parametrize("judged", [features.nearest, features.linear])
def test_classes_that_lie_apart_are_told(judged: Any) -> None:
    draw = np.random.default_rng(0)
    centres = 10 * np.eye(10, 16) + 1
    train, test = (np.arange(10).repeat(n) for n in (20, 5))
    near, far = (
        judged(centres[train] + draw.normal(0, noise, (200, 16)), train, centres[test])
        for noise in (0.1, 100.0)
    )
    np.testing.assert_array_equal(near, test)
    assert (far != test).any()


def test_features_are_compared(model: Path, few: Any, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--model", str(model), "--images", "30", "--block", "1", "--channels", "3"]
    assert features.main([*args, "--threads", "1"]) == 0
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert head == "| recipe | nearest neighbour | linear probe |"
    assert [row.split("|")[1].strip() for row in rows] == list(RECIPES)
    for row in rows:
        for cell in row.split("|")[2:4]:
            measured, low, high = map(float, re.findall(r"[\d.]+", cell))
            assert low <= measured <= high
            assert (
                abs(30 * measured - round(30 * measured)) < 0.02
            )  # a share of 30 images; three digits
