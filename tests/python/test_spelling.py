"""Messages in Python name Python's keywords, and unknown names are answered with near ones."""

from __future__ import annotations

import inspect
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pytest

import intaglio
from tests.fake_bundle import make_bundle

KEYWORDS = [*inspect.signature(intaglio.Pipeline.generate).parameters]
WRONG: list[dict[str, Any]] = [
    {"class_label": None}, {"class_label": 99}, {"prompt": "x"}, {"steps": 0}, {"batch": 0},
    {"seeds": [1, 2], "batch": 3}, {"height": 3}, {"width": 3}, {"cfg_scale": -1},
    {"cfg_window": (1, 0)}, {"dg_window": (1, 0)}, {"ma_keep": -2}, {"reuse_interval": 0},
    {"reuse_window": (0, 1)}, {"skip_interval": 0}, {"skip_window": (0, 1)}, {"skip_steps": [1]},
    {"skip_tolerance": 1}, {"skip": "never"}, {"skip": "auto", "skip_steps": [4]},
    {"distilled_guidance": 1}, {"ma_channels": [99]}, {"strength": 0.5}, {"vae_tile": 1},
]  # fmt: skip


@pytest.fixture(scope="module")
def by_class(tmp_path_factory: pytest.TempPathFactory) -> intaglio.Pipeline:
    return intaglio.Pipeline.open(make_bundle(tmp_path_factory.mktemp("fake") / "class", "class"))


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_errors_name_keywords(by_class: intaglio.Pipeline, options: dict[str, Any]) -> None:
    with pytest.raises(intaglio.UsageError) as raised:
        by_class.generate(**{"class_label": 1, **options})
    sentence = str(raised.value)
    assert "--" not in sentence
    assert [name for name in options if re.search(rf"\b{name}\b", sentence)]


def test_notes_name_keywords(by_class: intaglio.Pipeline) -> None:
    with pytest.warns(UserWarning, match="^a cfg_scale below 1") as warned:
        drawn = by_class.generate(class_label=1, cfg_scale=0.5)
    assert [str(warning.message) for warning in warned] == drawn.notes
    assert warned[0].filename == __file__


def test_a_flag_inside_quoted_text_or_a_path_stays(tmp_path: Path) -> None:
    with pytest.raises(intaglio.UsageError, match='there is no device "--steps": device is one of'):
        intaglio.Pipeline.open(make_bundle(tmp_path / "fake", "class"), device="--steps")
    with pytest.raises(intaglio.InputError, match=re.escape(f"{tmp_path}/--steps")):
        intaglio.Pipeline.open(tmp_path / "--steps")


def test_unknown_keywords_are_answered_with_near_ones(by_class: intaglio.Pipeline) -> None:
    names = [name for name in KEYWORDS if name not in {"self", "on_step", "progress"}]
    for name in names:
        for i in range(len(name) - 1):
            typed = name[:i] + name[i + 1] + name[i] + name[i + 2 :]
            if typed == name or get_close_matches(typed, names, 1) != [name]:
                continue
            for call in (by_class.generate, lambda **o: intaglio.validate(by_class.bundle, **o)):
                with pytest.raises((TypeError, intaglio.UsageError)) as raised:
                    call(**{typed: 1})
                says = f"generate() has no option {typed} (did you mean {name}?)"
                assert str(raised.value) == says
    with pytest.raises(TypeError, match=r"no option zzz$"):
        by_class.generate(zzz=1)  # type: ignore[call-arg]


def test_keywords_of_diffusers_are_answered_with_ours(by_class: intaglio.Pipeline) -> None:
    from diffusers import StableDiffusion3Pipeline

    theirs = inspect.signature(StableDiffusion3Pipeline.__call__).parameters
    for name, ours in {
        "guidance_scale": "cfg_scale",
        "num_inference_steps": "steps",
        "num_images_per_prompt": "batch",
        "generator": "seeds",
    }.items():
        assert name in theirs
        with pytest.raises(TypeError, match=f"no option {name}: use {ours}"):
            by_class.generate(**{name: 1})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dpmpp_2m", r'unknown scheduler "dpmpp_2m" \(did you mean dpmpp-2m\?\): use one of'),
        ("DPMSolverMultistepScheduler", r"\(here it is called dpmpp-2m\): use one of euler"),
    ],
)
def test_unknown_schedulers(by_class: intaglio.Pipeline, name: str, says: str) -> None:
    with pytest.raises(intaglio.UsageError, match=says):
        by_class.generate(class_label=1, scheduler=name)
