"""The training program of the emoji model, end to end for a few steps on drawn shapes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw

from intaglio.analysis.experiments import baselines
from intaglio.analysis.quality.judge import Judge
from intaglio_export.options import read_settings
from models.training import curve, flow, pipeline_folder, state, text
from models.training.emoji import (
    autoencoder,
    card,
    evaluate,
    judge,
    pictures,
    settings,
    train,
    watch,
)
from models.training.emoji.examples import Batches, Examples
from tests.training.conftest import load

pytestmark = pytest.mark.exports


def shapes(work: Path) -> None:
    """Write the pictures of a run: coloured ellipses, some of which are held out."""
    emoji, images = [], []
    for i in range(30):
        image = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(image).ellipse(
            (8 + i % 9, 8, 55, 55 - i % 7), f"hsl({37 * i % 360},80%,50%)"
        )
        images.append(np.asarray(image))
        style = pictures.STYLES[i % 3]
        emoji.append(pictures.Emoji(f"ball {i // 3}", "objects", "shapes", "", style))
    work.mkdir(parents=True)
    np.save(work / "pictures.npy", np.stack(images))
    (work / "pictures.json").write_text(json.dumps([asdict(one) for one in emoji]))


def arguments(base: Path, *more: str) -> list[str]:
    options = {
        "out": base / "model",
        "work": base / "work",
        "text-steps": 2,
        "vae-steps": 2,
        "vae-batch": 4,
        "batch": 4,
        "width": 64,
        "blocks": 3,
        "threads": 1,
        "watch-steps": 2,
        "sheet-steps": 1000,
        "milestone-steps": 1000,
    }
    return [*(word for name, value in options.items() for word in (f"--{name}", str(value))), *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with its exported pipeline."""
    base = tmp_path_factory.mktemp("emoji")
    shapes(base / "work")
    assert train.main(arguments(base, "--steps", "2")) == 0
    assert train.main(arguments(base, "--export-only")) == 0
    return base


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def steps(path: Path) -> list[int]:
    with path.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_folder_is_a_diffusers_pipeline_without_qk_norm(trained: Path) -> None:
    made = load(trained / "model")
    assert made.vae_scale_factor == 4
    assert made.tokenizer_max_length == 24
    assert made.transformer.config.qk_norm is None
    made(
        "a red ball, flat",
        height=64,
        width=64,
        num_inference_steps=2,
        max_sequence_length=text.MAX_SEQUENCE_LENGTH,
    ).images[0].verify()
    files = (trained / "model").rglob("*.safetensors")
    assert {path.parent.name for path in files} >= {"transformer", "vae", "text_encoder"}


def test_the_default_size_leaves_room_for_the_other_parts_in_30_mb() -> None:
    """12 blocks of 192 channels would take more than that in float16 by themselves."""
    args = train.parse([])
    with torch.device("meta"):
        model = flow.build_transformer(args.width, args.blocks, args.head_dim, latent_channels=8)
    assert len(model.transformer_blocks) >= 12
    assert model.inner_dim >= 176
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 28e6


@pytest.fixture
def sigterm_fails() -> Iterator[None]:
    """A SIGTERM fails the test; otherwise it would end the process that runs all tests."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nothing handled SIGTERM"))
    ours = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is ours
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm_fails")
def test_sigterm_saves_a_checkpoint_and_the_next_run_continues(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the first step after the two of the fixture."""
    advance = train.Run.advance

    def interrupted(run: train.Run, batches: Batches) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(run, batches)

    with monkeypatch.context() as patched:
        patched.setattr(train.Run, "advance", interrupted)
        assert train.main(arguments(run_folder)) == 0
    stopped = torch.load(state.checkpoints(run_folder / "work")[0], weights_only=True)["step"]
    assert stopped == 3
    assert train.main(arguments(run_folder, "--steps", "4")) == 0
    assert train.Run(train.parse(arguments(run_folder))).step == 4
    seen = steps(run_folder / "work/activations.csv")
    assert seen == sorted(seen)
    assert len(state.checkpoints(run_folder / "work")) == state.KEPT


def test_a_stopped_autoencoder_continues(tmp_path: Path) -> None:
    """Interrupted after one step of three, it has the same weights as in one go."""
    shapes(tmp_path / "work")
    examples = Examples.of(pictures.load(tmp_path / "work"))
    cpu, draw = torch.device("cpu"), examples.pixels
    whole = autoencoder.Training(3, cpu, tmp_path / "whole.pt")
    assert autoencoder.train(draw, whole, 2, 60.0, []) is not None
    first = autoencoder.Training(3, cpu, tmp_path / "parts.pt")
    assert autoencoder.train(draw, first, 2, 60.0, [signal.SIGTERM]) is None
    second = autoencoder.Training(3, cpu, tmp_path / "parts.pt")
    assert second.step == 1
    assert autoencoder.train(draw, second, 2, 60.0, []) is not None
    for a, b in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_broken_checkpoint_is_passed_over(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = run_folder / "work"
    whole = state.checkpoints(work)[0].read_bytes()
    (work / "checkpoint-00000009.pt").write_bytes(whole[: len(whole) // 2])
    assert train.Run(train.parse(arguments(run_folder))).step == 2
    assert "checkpoint-00000009.pt cannot be read" in capsys.readouterr().err


def test_training_continues_from_the_shipped_folder(run_folder: Path) -> None:
    work = run_folder / "work"
    before = AutoencoderKL.from_pretrained(work / "vae")
    shutil.rmtree(work)
    shapes(work)
    # An autoencoder that is trained anew would take three steps now.
    assert train.main(arguments(run_folder, "--steps", "4", "--vae-steps", "3")) == 0
    assert train.Run(train.parse(arguments(run_folder))).step == 4
    after = AutoencoderKL.from_pretrained(work / "vae")
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert after.config.scaling_factor == before.config.scaling_factor
    assert set(steps(work / "activations.csv")) == {2, 4}  # the first from the folder's own log


def test_logged_activations_are_those_of_the_blocks(trained: Path) -> None:
    """The same inputs through diffusers' own model, with all zero rows, and torch's hooks."""
    args = train.parse(arguments(trained))
    batches = train.prepare(args)
    assert batches is not None
    model = pipeline_folder.load(trained / "model").transformer
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.ff.net[2].bias[7] = 30.0
            block.norm1.linear.bias.fill_(1.0)
    seen: list[torch.Tensor] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out[1].abs()))
    model.set_attn_processor(flow.RepeatedRowAttention(text.MAX_SEQUENCE_LENGTH))
    rows = watch.activations(model, batches, n=4)
    assert len(rows) == len(seen) == 3 * len(watch.SIGMAS)
    for row, size in zip(rows, seen, strict=True):
        mean = size.mean(1)
        ratio = (mean / mean.median(1, keepdim=True).values).mean(0)
        assert float(row[2]) == pytest.approx(ratio.max().item(), rel=0.1)
        assert row[3] == "7"
        assert float(row[6]) == pytest.approx(size.max().item(), rel=1e-3)
    assert float(rows[-1][4]) == 1.0


def test_a_sheet_shows_every_prompt(trained: Path) -> None:
    pipeline = load(trained / "model")
    path = trained / "sheet.png"
    watch.sheet(pipeline, path)
    with Image.open(path) as page:
        assert page.size == (8 * 132, -(-len(watch.PROMPTS) // 8) * 166)


def test_judge_settings_evaluation_and_card(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs run in the order of the card, on fewer features and pictures than usual."""
    for module, name, value in (
        (judge, "FEATURES", 4),
        (settings, "OBSERVED", 2),
        (baselines, "PILOT", 2),
    ):
        monkeypatch.setattr(module, name, value)
    model, work = run_folder / "model", run_folder / "work"
    # After two steps the blocks are nearly the identity, so that no method changes anything.
    transformer = load(model).transformer
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(model / "transformer")
    curve.append(model / "curve.csv", [[20 * i, 2.0 / i, 1e-3, 1.0, 4] for i in range(1, 11)])
    common = ["--model", str(model), "--work", str(work)]
    assert card.main(common) == 3  # nothing is measured yet
    assert not (model / "README.md").exists()
    assert judge.main([*common, "--steps", "2"]) == 0
    few = ["--images", "8", "--confirm", "8", "--compare", "8", "--steps", "2"]
    assert settings.main([*common, *few]) == 0
    assert evaluate.main([*common, "--images", "6", "--steps", "2"]) == 0
    assert card.main(common) == 0
    page = (model / "README.md").read_text()
    assert "{{" not in page
    assert "held-out names, real" in page
    found = read_settings(model / "settings.json")
    assert found.max_sequence_length == text.MAX_SEQUENCE_LENGTH
    opened = Judge.open(model / "judge")
    known = pictures.load(work).of("train")
    assert set(opened.classes) == {one.name for one in known.emoji}
    assert [text for text, name in zip(opened.prompts, opened.labels, strict=True)
            if opened.classes[name] not in text] == []  # fmt: skip


def test_the_rate_falls_in_the_last_fifth_of_the_steps(run_folder: Path) -> None:
    run = train.Run(train.parse(arguments(run_folder, "--steps", "100", "--warmup", "10")))
    rates = {}
    for run.step in (0, 4, 9, 50, 80, 90, 99):
        rates[run.step] = run.learning_rate() / run.args.lr
    expected = {0: 0.1, 4: 0.5, 9: 1.0, 50: 1.0, 80: 1.0, 90: 0.5, 99: 0.05}
    assert rates == pytest.approx(expected)
