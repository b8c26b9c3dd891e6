"""Notes about what was asked for and does not show in the picture."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

import intaglio
from intaglio import _core
from tests import bundles
from tests.fake_bundle import make_bundle
from tests.families.parts import MAX_LENGTH
from tests.python.conftest import PROMPT

CFG, DG = "no step has CFG", "no step has Detail Guidance"
NEGATIVE = f"{CFG}, so the negative prompt is not used"
PICTURE = np.full((32, 32, 3), 90, np.uint8)

# Options, the same run without what no step uses, and what is said of it.
UNUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"negative_prompt": "dark", "cfg_scale": 1}, {"cfg_scale": 1}, f"{NEGATIVE}: its scale is 1"),
    (
        {"negative_prompt": "dark", "cfg_window": (0.9, 1)},
        {"cfg_scale": 1},
        f"{NEGATIVE}: its window 0.9:1 holds none of the 4 steps",
    ),
    ({"cfg_window": (0.9, 1)}, {"cfg_scale": 1}, f"{CFG}: its window 0.9:1 holds none of the 4"),
    ({"cfg_scale": (1, 3), "steps": 1}, {"cfg_scale": 1, "steps": 1}, f"{CFG}: its scale is 1"),
    ({"dg_window": (0.3, 0.45)}, {"dg_scale": 0}, f"{DG}: its window 0.3:0.45 holds none of the 4"),
    (
        {"dg_window": (0.2, 0.8), "dg_scale": 3, "steps": 1},
        {"dg_scale": 0, "steps": 1},
        f"{DG}: its window 0.2:0.8 does not hold the only step",
    ),
    ({"ma_keep": 1, "dg_scale": 3}, {"dg_scale": 0}, f"{DG}: ma_keep is 1"),
    (  # of 12 steps the last 3 run
        {"image": PICTURE, "strength": 0.2, "steps": 12, "dg_window": (0.4, 0.6)},
        {"image": PICTURE, "strength": 0.2, "steps": 12, "dg_scale": 0},
        f"{DG}: its window 0.4:0.6 holds none of the 3 steps",
    ),
]
# Nothing is said of guidance that a step uses, or that was turned off.
QUIET: list[dict[str, Any]] = [
    {},
    {"negative_prompt": "dark"},
    {"cfg_scale": 1, "cfg_window": (0.9, 1)},
    {"dg_scale": 0, "dg_window": (0.3, 0.45), "ma_keep": 0.5},
    {"cfg_window": (0.7, 1), "dg_window": (0, 0.1)},
]


def said(pipeline: intaglio.Pipeline, options: dict[str, Any]) -> tuple[intaglio.Generation, Any]:
    """Draw alone and in a batch, and return the result and what both warned of."""
    with warnings.catch_warnings(record=True) as alone:
        warnings.simplefilter("default")
        generation = pipeline.generate(PROMPT, **options)
    batch = intaglio.Batch(pipeline)
    batch.add(prompt=PROMPT, **options)
    with warnings.catch_warnings(record=True) as together:
        warnings.simplefilter("default")
        while len(batch):
            finished = [step.finish() for step in batch.step() if step.done]
    messages = [str(warning.message) for warning in alone]
    assert [str(warning.message) for warning in together] == messages
    assert generation.notes == finished[0].notes == messages
    assert {warning.filename for warning in alone} <= {__file__}
    return generation, messages


@pytest.mark.reported(
    "mcmonkeyprojects/SwarmUI#204",
    "lllyasviel/stable-diffusion-webui-forge#2496",
    "lllyasviel/stable-diffusion-webui-forge#1115",
)
@pytest.mark.parametrize(("options", "without", "sentence"), UNUSED, ids=str)
def test_guidance_that_no_step_uses(
    forked: intaglio.Pipeline, options: dict[str, Any], without: dict[str, Any], sentence: str
) -> None:
    """A negative prompt without CFG, or a window in which no step begins, changes nothing, and a
    warning says so."""
    generation, messages = said(forked, options)
    np.testing.assert_array_equal(generation.latents, forked.generate(PROMPT, **without).latents)
    assert [message for message in messages if message.startswith(sentence)] == messages
    assert len(messages) == 1


@pytest.mark.parametrize("options", QUIET, ids=str)
def test_nothing_is_said_of_guidance_that_is_used_or_off(
    forked: intaglio.Pipeline, options: dict[str, Any]
) -> None:
    assert said(forked, options)[1] == []


def end_after(name: str, words: list[str]) -> list[str]:
    """Return the words that transformers' tokenizer leaves out, or leaves out in part."""
    tokenizer = AutoTokenizer.from_pretrained(bundles.source("sd3") / name)
    kept = range(len(words) + 1)
    ids = [tokenizer(" ".join(words[:count])).input_ids for count in kept]
    return words[max(count for count in kept if len(ids[count]) <= MAX_LENGTH) :]


@pytest.mark.reported("smthemex/ComfyUI_StoryDiffusion#69", "bghira/SimpleTuner#760")
def test_each_cut_prompt_is_said_with_what_is_cut(forked: intaglio.Pipeline) -> None:
    """Each prompt that is too long causes a warning with its words that are not read, also a
    second time from the same line."""
    long = [["A", "Dress,"] * 12, ["the", "coat's", "sleeves"] * 9, ["boot"] * 40, ["boot"] * 40]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for words in long:
            generation = forked.generate(" ".join(words), steps=1)
            assert [note for note in generation.notes if "more tokens" in note]
    notes = [str(warning.message) for warning in caught if "more tokens" in str(warning.message)]
    expected = [
        f"the prompt has more tokens than {encoder} reads ({MAX_LENGTH}): its end is ignored, "
        f'"{" ".join(end_after(name, words))}"'
        for words in long
        for encoder, name in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    ]
    assert notes == expected


def test_what_is_cut_of_a_text_without_spaces(forked: intaglio.Pipeline) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(100))
    notes = forked.embed(text).notes
    for note in notes:
        cut = note.split('"')[1].removesuffix("...")
        assert cut in text
        assert len(cut) < 90
    assert notes


@pytest.mark.parametrize("distilled", [True, False])
def test_cfg_of_a_model_that_was_distilled_to_do_without(tmp_path: Path, distilled: bool) -> None:
    folder = make_bundle(tmp_path / "fake", "class")
    file = folder / "bundle.json"
    manifest = json.loads(file.read_text()) | ({"distilled": True} if distilled else {})
    file.write_text(json.dumps(manifest))
    bundle = intaglio.Pipeline.open(folder).bundle
    says = ["the model was distilled to do without CFG, and CFG may spoil its pictures"]
    for cfg_scale, expected in ((3.0, says if distilled else []), (1.0, [])):
        notes = _core.unused_guidance(bundle, {"class_label": 0, "cfg_scale": cfg_scale})
        assert [note.split(":")[0] for note in notes] == expected


def test_a_long_row_of_skipped_steps(tmp_path: Path) -> None:
    bundle = intaglio.Pipeline.open(make_bundle(tmp_path / "fake", "class")).bundle
    for skipped, expected in ((range(3, 8), []), (range(3, 9), ["6 steps in a row are skipped"])):
        options = {"class_label": 0, "steps": 12, "skip_steps": [*skipped]}
        notes = _core.unused_guidance(bundle, options)
        assert [note.split(",")[0] for note in notes] == expected


SKIPPING = [
    {"steps": steps, "scheduler": "FlowMatchEulerDiscreteScheduler", "skipped": [4], "tolerance": 1}
    for steps in (28, 50)
]


def with_skipping(folder: Path, skipping: list[dict[str, Any]]) -> _core.Bundle:
    file = make_bundle(folder, "class") / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"skipping": skipping}))
    return intaglio.Pipeline.open(folder).bundle


def test_a_missing_schedule_is_said_with_those_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note has the steps of the schedules, and a command that makes another one."""
    from intaglio.analysis import skipping

    bundle = with_skipping(tmp_path / "some", SKIPPING)
    auto = {"class_label": 0, "skip": "auto"}
    assert _core.unused_guidance(bundle, auto | {"steps": 28}) == []
    (note,) = _core.unused_guidance(bundle, auto | {"steps": 12})
    assert note.startswith("no step is skipped: the bundle has no schedule for 12 steps of this")
    assert "only for 28 or 50 steps of FlowMatchEulerDiscreteScheduler" in note
    words = note.split("`")[1].split()
    assert words[:3] == ["python", "-m", skipping.__name__]
    monkeypatch.setattr("sys.argv", [*words[2:-1], "8"])  # B is for a number
    parsed = skipping._parse()
    assert (str(parsed.model), parsed.steps, parsed.evaluations) == ("SOURCE", 12, 8)
    (few,) = _core.unused_guidance(bundle, auto | {"steps": 3})
    assert "the first 3 always run, and this run has 3: give more steps" in few
    none = with_skipping(tmp_path / "none", [])
    assert "only for" not in _core.unused_guidance(none, auto | {"steps": 12})[0]


@pytest.mark.parametrize(
    ("scales", "says"),
    [
        ({"cfg_scale": 0.0}, "a cfg_scale below 1 steers away from the prompt"),
        ({"cfg_scale": (0.5, 3.0)}, "a cfg_scale below 1 steers away from the prompt"),
        ({"dg_scale": -1.0}, "a dg_scale below 0 removes detail"),
        ({"cfg_scale": 1.0, "dg_scale": 0.0}, None),
        ({"cfg_scale": 1.5, "dg_scale": 0.5}, None),
    ],
)
def test_scales_that_steer_the_other_way(
    tmp_path: Path, scales: dict[str, Any], says: str | None
) -> None:
    bundle = with_skipping(tmp_path / "fake", [])
    notes = _core.unused_guidance(bundle, {"class_label": 0, **scales})
    assert [note.split(":")[0] for note in notes] == ([says] if says else [])
