"""What flags and settings files may say."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio_export.calibration.recipes import find_recipe
from intaglio_export.errors import ExitCode, ExportError
from intaglio_export.options import (
    SETTINGS_SCHEMA,
    ExportRequest,
    ModelSettings,
    parse_channels,
    read_settings,
)
from intaglio_export.support import resources

PATH_SCHEMA = resources.bundle_schema()["$defs"]["path"]


@pytest.mark.parametrize(
    ("short", "long"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")]
)
def test_a_dtype_has_a_short_and_a_long_name(short: str, long: str) -> None:
    for name in (short, long):
        assert str(ExportRequest("model", Path("out"), dtype=name).dtype) == long


@pytest.mark.parametrize("name", ["fp8", "FP16", "half", ""])
def test_other_dtypes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid Dtype"):
        ExportRequest("model", Path("out"), dtype=name)


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=8, unique=True))
def test_a_list_of_channels_is_read_back(channels: list[int]) -> None:
    choice = parse_channels(" , ".join(map(str, channels)))
    assert (choice.kind, choice.channels) == ("list", tuple(channels))


@given(st.integers(1, 9999))
def test_top_k_is_read_back(count: int) -> None:
    assert parse_channels(f"top:{count}").count == count


@pytest.mark.parametrize(
    "text", ["", "top", "top:", "top:0", "top:-1", "1,1", "1,,2", "-3", "x", "²"]
)
def test_other_channels_are_a_usage_error(text: str) -> None:
    with pytest.raises(ExportError, match=r"^--channels ") as caught:
        parse_channels(text)
    assert caught.value.exit_code == ExitCode.USAGE


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ExportError):
        assert parse_channels(text).kind in {"auto", "list", "top"}


def test_settings_lie_over_one_another() -> None:
    below = ModelSettings(block=3, channels=[1, 2], ref=[0.5, 0.5], steps=8)
    over = ModelSettings(channels="top:4", keep=0.25).over(below)
    assert (over.block, over.channels, over.steps) == (3, "top:4", 8)
    assert over.ref is None, "the ref of other channels"
    assert over.keep_range() == [0.25, 0.25]
    assert ModelSettings(block=0).over(below).block == 0


def test_every_setting_may_be_in_a_file() -> None:
    assert set(SETTINGS_SCHEMA["properties"]) == {*ModelSettings.__dataclass_fields__, "evidence"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not of type 'object'"),
        ('{"blok": 1}', "'blok' was unexpected"),
        ('{"block": -1}', "less than the minimum"),
        ('{"keep": 2}', "at keep"),
        ('{"channels": "top:0"}', "at channels"),
        ('{"channels": [8.0]}', "at channels"),
        ('{"block": 3.0}', "3.0 is not of type 'integer'"),
        ('{"block": true}', "not of type 'integer'"),
        ('{"dg_scale": NaN}', "NaN is not a number"),
        ('{"dg_scale": -Infinity}', "-Infinity is not a number"),
        ('{"dg_scale": 1e999}', "1e999 is too large"),
        ('{"cfg_scale": 1e39}', "at cfg_scale"),
        ('{"cfg_scale": -1}', "less than the minimum of 0 .at cfg_scale"),
        ('{"distilled_guidance": -1}', "less than the minimum of 0"),
        (
            '{"skipping": [{"steps": 9, "scheduler": "x", "skipped": [4], "tolerance": 1,'
            ' "evidence": {"error": "big"}}]}',
            "at skipping/0/evidence/error",
        ),
        ('{"steps": 10001}', "greater than the maximum of 10000"),
        ('{"name": "\\ud800"}', "surrogates"),
        ('{"dg_window": [0.7, 0.2]}', "dg_window .0.7, 0.2. is empty"),
        ('{"cfg_window": [0.5, 0.5]}', "cfg_window .0.5, 0.5. is empty"),
    ],
)
def test_a_bad_settings_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ExportError, match=says) as caught:
        read_settings(path)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert str(path) in caught.value.message


def test_a_missing_settings_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Cannot read"):
        read_settings(tmp_path / "none.json")


def test_recipes_fit_the_settings_and_are_found_by_shape() -> None:
    for data in resources.recipes():
        jsonschema.validate(data["settings"], SETTINGS_SCHEMA)
        found = find_recipe(data["family"], data["match"], data.get("match_scheduler", {}))
        assert found is not None
        assert found.name == data["name"]
    medium = {"num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64}
    recipe = find_recipe("sd3", medium | {"qk_norm": None, "dual_attention_layers": ()}, {})
    assert recipe is not None
    assert recipe.settings.channels == [810]
    assert find_recipe("sd3", medium | {"qk_norm": "rms_norm"}, {}) is None


_parts = st.text(st.characters(codec="utf-8", exclude_characters="/\\\n\r"), min_size=1, max_size=5)


@given(st.lists(_parts, min_size=1, max_size=4))
def test_paths_that_stay_inside_are_valid_and_others_not(parts: list[str]) -> None:
    inside = ".." not in parts
    valid = jsonschema.Draft202012Validator(PATH_SCHEMA).is_valid
    assert valid("/".join(parts)) == inside
    assert not valid("/" + "/".join(parts))
    assert not valid("/".join([*parts, "..", "x"]))
    assert not valid("a\\" + "/".join(parts))


def test_settings_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"block": 2, "channels": [5, 7], "keep": [1.0, 0.0]}))
    settings = read_settings(path)
    choice = settings.channel_choice()
    assert choice is not None
    assert (choice.kind, choice.channels) == ("settings", (5, 7))
    assert settings.keep_range() == [1.0, 0.0]
