"""A bundle that is renamed, replaced or overwritten while a pipeline has it open."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import intaglio
from tests.python.conftest import PROMPT

START = {"image": np.full((32, 32, 3), 90, np.uint8), "strength": 0.5}


@pytest.fixture
def copied(forked_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may replace."""
    return Path(shutil.copytree(forked_bundle, tmp_path / "bundle"))


def scale(weights: Path) -> None:
    """Write other weights of the same size into a file, as another export would have them."""
    (np.fromfile(weights, np.float32) * 1.5).tofile(weights)


@pytest.mark.reported("ggml-org/llama.cpp#6774", "spotify/annoy#335")
@pytest.mark.parametrize("used", [False, True])
def test_a_replaced_folder_changes_nothing_that_is_open(
    forked: intaglio.Pipeline, copied: Path, used: bool
) -> None:
    """A pipeline draws from the files that it opened, although another folder has their name.

    The encoder of pictures is loaded after that, and all other parts too if nothing was drawn.
    """
    opened = intaglio.Pipeline.open(copied)
    if used:
        opened.generate(PROMPT, steps=1)
    other = shutil.copytree(copied, copied.with_name("other"))
    for weights in other.rglob("*.data"):
        scale(weights)
    copied.rename(copied.with_name("old"))
    other.rename(copied)
    shutil.rmtree(copied.with_name("old"))
    with pytest.raises(intaglio.InputError, match="SHA-256 differs"):
        intaglio.Pipeline.open(copied)
    for options in ({}, START):
        drawn = opened.generate(PROMPT, steps=2, **options)
        expected = forked.generate(PROMPT, steps=2, **options)
        np.testing.assert_array_equal(drawn.latents, expected.latents)
        np.testing.assert_array_equal(drawn.images[0], expected.images[0])


@pytest.mark.reported("yhirose/cpp-httplib#1930", "scalableminds/webknossos#3643")
@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae_decoder"])
@pytest.mark.parametrize("prepack", [False, True])
def test_files_that_are_overwritten_in_place_are_refused(
    copied: Path, part: str, prepack: bool
) -> None:
    """A file that is truncated or overwritten under an open pipeline gives an error that names it,
    instead of another picture or a bus error."""
    opened = intaglio.Pipeline.open(copied, prepack=prepack)
    opened.generate(PROMPT, steps=1)
    batch = intaglio.Batch(opened)
    batch.add(prompt=PROMPT, steps=3)
    batch.step()
    weights = copied / part / "weights.data"
    if part == "transformer":
        os.truncate(weights, 1000)
    else:
        scale(weights)
    says = f"{part}/weights.data was overwritten after the bundle was opened: open the bundle again"
    for call in (
        lambda: opened.generate(PROMPT, steps=1),
        lambda: opened.embed(PROMPT),
        lambda: batch.add(prompt=PROMPT),
        batch.step,
    ):
        with pytest.raises(intaglio.InputError, match=says):
            call()


def test_a_file_that_changes_during_a_run_gives_no_picture(copied: Path) -> None:
    opened = intaglio.Pipeline.open(copied)
    steps: list[int] = []

    def overwrite(step: intaglio.Step) -> None:
        steps.append(step.step)
        scale(copied / "vae_decoder" / "weights.data")

    with pytest.raises(intaglio.InputError, match=r"vae_decoder/weights\.data was overwritten"):
        opened.generate(PROMPT, steps=3, on_step=overwrite)
    assert steps == [0]


@pytest.mark.reported("microsoft/onnxruntime#27353")
def test_a_bundle_of_links_into_other_folders_draws(
    forked: intaglio.Pipeline, copied: Path, tmp_path: Path
) -> None:
    """A bundle whose files are symbolic links, each into a folder of its own, draws as ever."""
    linked = tmp_path / "linked"
    for number, file in enumerate(path for path in copied.rglob("*") if path.is_file()):
        link, kept = linked / file.relative_to(copied), tmp_path / "store" / str(number) / "blob"
        kept.parent.mkdir(parents=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(kept)
        link.symlink_to(kept)
    drawn = intaglio.Pipeline.open(linked).generate(PROMPT, steps=2)
    np.testing.assert_array_equal(drawn.latents, forked.generate(PROMPT, steps=2).latents)
