"""Profiles and keys over whatever images and settings there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from intaglio_export.engines.bundle import Component
from intaglio_export.engines.key import EngineSettings, component_key
from intaglio_export.engines.profiles import (
    CONDITIONS,
    Profile,
    Range,
    default_profile,
    input_shapes,
    parse_profiles,
)
from intaglio_export.errors import ExportError

UNITS = st.sampled_from([(8, 2), (8, 1), (2, 2), (16, 2)])


def manifest(scale: int, patch: int, largest: int, default: int, fixed: bool = False) -> Any:
    """What of a manifest a profile depends on; sides in tokens."""
    unit = scale * patch
    latent = {"vae_scale_factor": scale, "max_height": largest * unit, "max_width": largest * unit}
    if fixed:
        latent["fixed_size"] = True
    return {
        "name": "model",
        "latent": latent,
        "transformer": {"patch_size": patch, "graphs": {}},
        "defaults": {"height": default * unit, "width": default * unit},
        "prompt": {"text": [{"length": 16}, {"length": 5}]},
    }


def component(kind: str, **inputs: list[str | int]) -> Component:
    tensors = [{"name": name, "axes": axes} for name, axes in inputs.items()]
    return Component(kind, Path(), f"{kind}.onnx", kind, tensors, [])


@given(UNITS, st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_the_default_can_be_asked_for(
    unit: tuple[int, int], largest: int, default: int, fixed: bool
) -> None:
    """It is what a user may say, holds the default size, and goes as far as the model or half as
    much again."""
    default = largest if fixed else min(default, largest)
    model = manifest(*unit, largest, default, fixed)
    profile = default_profile(model)
    assert parse_profiles([str(profile)], model) == parse_profiles([], model) == (profile,)
    side, size = profile.height, model["defaults"]["height"]
    assert side.opt == size
    assert side == profile.width
    if fixed:
        assert side.min == side.max == size
    else:
        assert side.max == min(default * 3 // 2, largest) * unit[0] * unit[1]
        assert side.min == max(default // 2, 1) * unit[0] * unit[1]


sides = st.lists(st.integers(1, 128), min_size=3, max_size=3).map(sorted)


@given(UNITS, st.lists(st.integers(1, 64), min_size=3, max_size=3).map(sorted), sides, sides)
@pytest.mark.parametrize("third", [None, "source", "skipped"])
def test_every_request_of_a_profile_fits_the_shapes(
    third: str | None,
    unit: tuple[int, int],
    batch: list[int],
    rows: list[int],
    columns: list[int],
) -> None:
    """Of all images in it, with any branches, every input is within the shapes; those that run
    three of them from the first block on are of bundles that can."""
    pixels = unit[0] * unit[1]
    model = manifest(*unit, 128, 64)
    graphs = model["transformer"]["graphs"] = {"forked": {"inputs": [{"role": "latent"}]}}
    if third == "source":
        graphs["forked"]["inputs"].append({"role": "source"})
    if third == "skipped":
        graphs["conditioning"], model["family"] = {"inputs": []}, "flux"
    text = ",".join(
        f"{axis}={':'.join(str(size * by) for size in sizes)}"
        for axis, sizes, by in (
            ("batch", batch, 1), ("height", rows, pixels), ("width", columns, pixels),
        )
    )  # fmt: skip
    (profile,) = parse_profiles([text], model)
    axes = {
        "latent": ["base_rows", 4, "latent_height", "latent_width"],
        "packed": ["base_rows", "tokens", 64],
        "text": ["base_rows", "text_length", 8],
        "keep": ["rows", "tokens"],
    }
    shapes = input_shapes(component("forked", **axes), profile, model)
    for i, (n, h, w) in enumerate(zip(batch, rows, columns, strict=True)):
        for branches, base in ((1, 1), (2, 1), (2, 2), (3, 2), *([(3, 3)] if third else [])):
            request = {
                "latent": (base * n, 4, h * unit[1], w * unit[1]),
                "packed": (base * n, h * w, 64),
                "text": (base * n, 21, 8),
                "keep": (branches * n, h * w),
            }
            for name, shape in request.items():
                least, likely, most = shapes[name]
                for low, size, high in zip(least, shape, most, strict=True):
                    assert low <= size <= high
                if i == 1 and (branches, base) == (3, 2):
                    assert likely == shape
            if i == 2:
                assert shapes["latent"][2][0] == (3 if third else 2) * n


@pytest.mark.parametrize(
    ("pixels", "cells"), [((512, 1024), (64, 128)), ((1024, 2048), (128, 128))]
)
def test_the_decoder_takes_tiles_of_large_images(
    pixels: tuple[int, int], cells: tuple[int, int]
) -> None:
    """1024 pixels, and a last tile as thin as a cell (cpp/src/pipeline/vae.cpp)."""
    side = Range(512, *pixels)
    profile = Profile(Range(1, 2, 4), side, side)
    decoder = component("vae_decoder", latent=["images", 4, "latent_height", "latent_width"])
    assert input_shapes(decoder, profile, manifest(8, 2, 256, 64))["latent"] == (
        (1, 4, 1, 1),
        (1, 4, cells[0], cells[0]),
        (1, 4, cells[1], cells[1]),
    )


def test_conditioning_is_made_for_whole_schedules() -> None:
    """A row for each step and branch, in parts of what the runtime makes at once; two prompts, and
    a third one where three branches may run from the first block on."""
    axes = {"timestep": ["conditions"], "text": ["prompts", "text_length", 8]}
    model = manifest(8, 2, 64, 64)
    for steps, likely in ((20, 40), (50, 64)):
        model["defaults"]["steps"] = steps
        shapes = input_shapes(component("conditioning", **axes), default_profile(model), model)
        assert shapes["timestep"] == ((1,), (likely,), (64,))
        assert shapes["text"] == ((1, 21, 8), (2, 21, 8), (2, 21, 8))
    model["transformer"]["graphs"] = {"forked": {"inputs": [{"role": "source"}]}}
    shapes = input_shapes(component("conditioning", **axes), default_profile(model), model)
    assert shapes["text"] == ((1, 21, 8), (2, 21, 8), (3, 21, 8))
    runtime = Path(__file__).parents[2] / "cpp/src/pipeline/precompute.cpp"
    assert f"kConditioningRows = {CONDITIONS};" in runtime.read_text("utf-8")


def test_references_of_the_largest_size_fit_small_pictures() -> None:
    sizes = [[1568, 672], [1024, 1024], [672, 1568]]
    model = manifest(8, 2, 256, 64) | {"references": {"most": 1, "time": 1, "sizes": sizes}}
    (profile,) = parse_profiles(["height=512,width=512"], model)
    forked = component("forked", references=["base_rows", "references", 64])
    least, _, most = input_shapes(forked, profile, model)["references"]
    tokens = [width * height // 16**2 for width, height in sizes]
    assert (least[1], most[1]) == (0, max(tokens))
    encoder = component("vae_encoder", image=["images", 3, "image_height", "image_width"])
    least, _, most = input_shapes(encoder, profile, model)["image"]
    for width, height in [*sizes, (512, 512)]:
        assert least[2] <= height <= most[2]
        assert least[3] <= width <= most[3]


def test_an_axis_of_no_known_name_is_refused() -> None:
    model = manifest(8, 2, 64, 64)
    refusal = r"bundle\.json: the axis frames of latent in base\.onnx is unknown .* export again"
    with pytest.raises(ExportError, match=refusal) as raised:
        input_shapes(component("base", latent=["rows", "frames"]), default_profile(model), model)
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("size", [33, 0, 4096])
@pytest.mark.parametrize("given", [[], ["height=16"]])
def test_a_default_size_that_the_model_has_not(size: int, given: list[str]) -> None:
    model = manifest(8, 2, 64, 64)
    model["defaults"]["height"] = size
    with pytest.raises(
        ExportError, match=rf"bundle\.json: the default height {size} does not fit"
    ) as e:
        parse_profiles(given, model)
    assert e.value.exit_code == 3


@given(st.text(alphabet="batchheiwd=:,0123456789-. ", max_size=40))
def test_any_text_is_read_or_refused_in_a_sentence(text: str) -> None:
    model = manifest(8, 2, 64, 64)
    profile, refusal = read(text, model)
    if profile is not None:
        assert parse_profiles([str(profile)], model) == (profile,)
    else:
        assert refusal is not None
        assert refusal.exit_code == 2
        assert refusal.message.startswith("--profile ")
        assert refusal.message.endswith(".")


def read(text: str, model: Any) -> tuple[Profile | None, ExportError | None]:
    try:
        return parse_profiles([text], model)[0], None
    except ExportError as error:
        return None, error


ONE = EngineSettings(
    "tensorrt-rtx",
    "1.7",
    ("sm89",),
    "float32",
    (Profile(Range(1, 1, 4), Range(8, 8, 8), Range(8, 8, 8)),),
    (),
)
CHANGES = {
    "backend": st.just("tensorrt"),
    "version": st.text(min_size=1),
    "targets": st.lists(st.sampled_from(["sm86", "sm89", "sm120"]), min_size=1, unique=True),
    "precision": st.sampled_from(["float16", "bfloat16"]),
    "profiles": st.builds(
        lambda n: (replace(ONE.profiles[0], batch=Range(1, 1, n)),), st.integers(1, 64)
    ),
    "flags": st.just(("weight_streaming",)),
}


@given(st.sampled_from(sorted(CHANGES)), st.data())
def test_every_setting_is_in_the_key(field: str, data: st.DataObject) -> None:
    value = data.draw(CHANGES[field])
    value = tuple(value) if isinstance(value, list) else value
    other = replace(ONE, **{field: value})
    assume(other != ONE)
    assert other.key != ONE.key
    assert replace(other, **{field: getattr(ONE, field)}).key == ONE.key


class Weighted(Component):
    """Reads one weights file."""

    files = ["g.onnx", "w.data"]  # type: ignore[assignment]  # noqa: RUF012


def test_what_a_component_has_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, graph, weights, the shapes that the manifest makes of profiles, the stream."""
    inputs = [{"name": "text", "axes": ["rows", "text_length"]}]
    part = Weighted("base", Path(), "g.onnx", "base", inputs, [])

    def key(
        settings: EngineSettings = ONE,
        graph: str = "a",
        other: str = "c",
        length: int = 5,
        **more: Any,
    ) -> str:
        digests = {"g.onnx": graph, "w.data": more.pop("weights", "b"), "elsewhere": other}
        model = manifest(8, 2, 64, 64) | {"files": {p: {"sha256": d} for p, d in digests.items()}}
        model["prompt"]["text"][1]["length"] = length
        model["transformer"] |= {"blocks": 4, "channels": 8} | more
        return component_key(settings, part, model)

    assert key() == key(other="d")
    different = [key(), key(graph="x"), key(weights="x"), key(replace(ONE, version="2"))]
    different += [key(length=6), key(blocks=5), key(channels=16)]
    monkeypatch.setattr("intaglio_export.engines.key.BUILDER_REVISION", 0)
    different.append(key())
    assert len(set(different)) == 8
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in different)
