"""Editing a picture on the page: its mask is painted by mouse, finger and keyboard."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import Request
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

import intaglio
from intaglio.serve.api import openai as api
from intaglio.serve.api.schemas import EditRequest
from intaglio.serve.api.uploads import read_form
from tests.serve.page.browser import (
    PROMPT,
    assert_same,
    decoded,
    pixels,
    press,
    seen,
    wait_until,
)

SIZE = (40, 24)
Point = tuple[float, float]
Form = tuple[EditRequest, dict[str, list[bytes]]]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A file with noise."""
    drawn = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(drawn).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.fixture
def easel(page: Page, picture: Path) -> Page:
    """The page with the picture, a brush of 8 pixels and few steps."""
    page.get_by_label("Steps", exact=True).fill("2")
    page.get_by_label("Picture file").set_input_files(picture)
    page.get_by_label("Brush", exact=True).fill("8")
    return page


def canvas_of(page: Page) -> Any:
    return page.get_by_role("application", name="Mask")


def on_screen(page: Page, point: Point) -> Point:
    """Return where a point of the picture is in the window."""
    box = canvas_of(page).bounding_box()
    assert box
    return box["x"] + point[0] * box["width"] / SIZE[0], box["y"] + point[1] * box["height"] / SIZE[
        1
    ]


def by_mouse(page: Page, start: Point, end: Point) -> None:
    canvas_of(page).scroll_into_view_if_needed()
    page.mouse.move(*on_screen(page, start))
    page.mouse.down()
    page.mouse.move(*on_screen(page, end), steps=5)
    page.mouse.up()


def without_coalesced_events(page: Page, start: Point, end: Point) -> None:
    """Use the mouse in a browser that reports single positions, as over plain HTTP."""
    page.evaluate("delete PointerEvent.prototype.getCoalescedEvents")
    by_mouse(page, start, end)


def by_finger(page: Page, start: Point, end: Point) -> None:
    """Drag a finger, and touch with another one, which must not paint."""
    canvas_of(page).scroll_into_view_if_needed()
    scrolled = page.evaluate("scrollY")
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})

    def touch(kind: str, *points: Point) -> None:
        places = [on_screen(page, point) for point in points]
        touches = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    other = (SIZE[0] - 2.0, 2.0)
    touch("touchStart", start)
    touch("touchStart", start, other)
    for share in np.linspace(0.2, 1, 5):
        x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
        touch("touchMove", (x, y), other)
    touch("touchEnd")
    assert page.evaluate("scrollY") == scrolled


def by_keyboard(page: Page, start: Point, end: Point) -> None:
    """Move the brush from the middle to `start`, and with Space held down to `end`."""
    canvas = canvas_of(page)
    canvas.focus()
    scrolled = page.evaluate("scrollY")

    def move(here: Point, there: Point) -> None:
        step = 2  # a quarter of the brush
        for axis, keys in enumerate((("ArrowLeft", "ArrowRight"), ("ArrowUp", "ArrowDown"))):
            count = (there[axis] - here[axis]) / step
            assert count == int(count)
            for _ in range(abs(int(count))):
                canvas.press(keys[count > 0])

    move((SIZE[0] / 2, SIZE[1] / 2), start)
    page.keyboard.down(" ")
    move(start, end)
    page.keyboard.up(" ")
    assert page.evaluate("scrollY") == scrolled


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> list[Form]:
    """The fields and files of all edits that the server reads."""
    found: list[Form] = []

    async def read(request: Request) -> Form:
        found.append(await read_form(request))
        return found[-1]

    monkeypatch.setattr(api, "read_form", read)
    return found


def painted(form: Form) -> NDArray[np.bool]:
    """Return where the mask that the server received is transparent, [H, W]."""
    mask = Image.open(io.BytesIO(form[1]["mask"][0]))
    assert (mask.mode, mask.size) == ("RGBA", SIZE)
    alpha = np.asarray(mask)[..., 3]
    assert set(np.unique(alpha)) <= {0, 255}
    return alpha == 0


def distance(start: Point, end: Point) -> NDArray[np.float64]:
    """Return the distance of each pixel's centre from a line, [H, W]."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    (x0, y0), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    return np.hypot(x - x0 - along * dx, y - y0 - along * dy)


def assert_stroke(mask: NDArray[np.bool], start: Point, end: Point, size: float = 8) -> None:
    """Check a mask with one stroke, whose edge may be half a pixel off."""
    away = distance(start, end)
    assert mask[away < size / 2 - 0.5].all()
    assert not mask[away > size / 2 + 0.5].any()


def draw_anew(page: Page) -> None:
    press(page, "Draw anew")
    wait_until(page, "Done.")


@pytest.mark.parametrize("stroke", [by_mouse, without_coalesced_events, by_finger, by_keyboard])
def test_what_is_painted_is_drawn_anew(
    easel: Page,
    forms: list[Form],
    picture: Path,
    pipeline: intaglio.Pipeline,
    stroke: Callable[[Page, Point, Point], None],
) -> None:
    """All else equals what the library makes of the picture."""
    start, end = (8.0, 10.0), (22.0, 10.0)
    stroke(easel, start, end)
    easel.get_by_label("Seed", exact=True).fill("5")
    easel.get_by_label("Strength").fill("0.8")
    easel.get_by_label("Mask blur").fill("1.5")
    draw_anew(easel)

    [(fields, files)] = forms
    mask = painted(forms[0])
    assert_stroke(mask, start, end)
    assert files["image"] == [picture.read_bytes()]
    expected = pipeline.generate(
        PROMPT, image=Image.open(picture), mask=(mask * 255).astype(np.uint8), seeds=5, steps=2,
        strength=0.8, mask_blur=1.5, cfg_scale=fields.cfg_scale, dg_scale=fields.dg_scale,
    )  # fmt: skip
    after = pixels(easel.locator("#right"))
    assert_same(after, np.asarray(expected.images[0]))
    np.testing.assert_array_equal(pixels(easel.locator("#left")), decoded(picture.read_bytes()))


def test_before_and_after_share_a_divider(easel: Page, picture: Path) -> None:
    easel.get_by_role("application", name="Mask").press(" ")
    draw_anew(easel)
    divider = easel.get_by_role("slider", name="Divider: Before to the left, After to the right")
    before, after = decoded(picture.read_bytes()), pixels(easel.locator("#right"))
    assert np.abs(before.astype(int) - after).max() > 4
    plain = np.s_[4:12, 2:-2]  # without the names, the line at an edge and its handle
    divider.press("End")
    np.testing.assert_array_equal(seen(easel)[plain], before[plain])
    divider.press("Home")
    np.testing.assert_array_equal(seen(easel)[plain], after[plain])
    expect(easel.get_by_role("combobox", name="Left", exact=True)).to_be_hidden()

    history = easel.get_by_role("button", name=f"Restore: {PROMPT}, edited, ")
    press(easel, "Generate")
    wait_until(easel, "Done.")
    expect(easel.locator("#right")).to_be_hidden()
    history.click()
    np.testing.assert_array_equal(pixels(easel.locator("#right")), after)


def test_only_the_part_around_the_mask_is_drawn(
    easel: Page, forms: list[Form], picture: Path, pipeline: intaglio.Pipeline
) -> None:
    """The picture keeps its size, also on the screen."""
    by_mouse(easel, (8.0, 8.0), (12.0, 8.0))
    easel.get_by_label("Padding").fill("2")
    for side in ("Width", "Height"):
        easel.get_by_label(side, exact=True).fill("16")
    draw_anew(easel)
    expected = pipeline.generate(
        PROMPT, image=Image.open(picture), mask=(painted(forms[0]) * 255).astype(np.uint8),
        mask_padding=2, width=16, height=16, seeds=1, steps=2,
        cfg_scale=forms[0][0].cfg_scale, dg_scale=forms[0][0].dg_scale,
    )  # fmt: skip
    assert expected.images[0].size == SIZE
    assert_same(pixels(easel.locator("#right")), np.asarray(expected.images[0]))
    box = easel.locator("#frame").bounding_box()
    assert box
    assert box["width"] / box["height"] == pytest.approx(SIZE[0] / SIZE[1], rel=0.02)


def test_strokes_are_undone_and_done_again(easel: Page, forms: list[Form]) -> None:
    first, second = ((6.0, 6.0), (14.0, 6.0)), ((28.0, 18.0), (34.0, 18.0))
    undo, redo = (easel.get_by_role("button", name=name) for name in ("Undo", "Redo"))
    expect(undo).to_be_disabled()
    by_mouse(easel, *first)
    by_mouse(easel, *second)
    draw_anew(easel)
    both = painted(forms[-1])
    canvas_of(easel).press("Control+z")
    expect(redo).to_be_enabled()
    draw_anew(easel)
    assert_stroke(painted(forms[-1]), *first)

    canvas_of(easel).press("Control+Shift+z")
    expect(redo).to_be_disabled()
    draw_anew(easel)
    np.testing.assert_array_equal(painted(forms[-1]), both)

    undo.click()
    undo.press("Enter")
    expect(undo).to_be_disabled()
    expect(canvas_of(easel)).to_be_focused()
    expect(easel.locator("#painted")).to_have_text("Without paint, all of it is drawn anew.")
    draw_anew(easel)
    assert list(forms[-1][1]) == ["image"]
    expect(redo).to_be_enabled()
    by_mouse(easel, *second)
    expect(redo).to_be_disabled()


def test_the_eraser_and_other_tools(easel: Page, forms: list[Form]) -> None:
    line = (6.0, 12.0), (34.0, 12.0)
    by_mouse(easel, *line)
    press(easel, "Erase")
    expect(easel.get_by_role("button", name="Erase")).to_have_attribute("aria-pressed", "true")
    canvas_of(easel).press("]")
    expect(easel.get_by_label("Brush", exact=True)).to_have_value("10")
    middle = (20.0, 12.0), (20.0, 12.0)
    by_mouse(easel, *middle)
    draw_anew(easel)
    mask = painted(forms[-1])
    assert not mask[distance(*middle) < 4.5].any()
    assert mask[(distance(*line) < 3.5) & (distance(*middle) > 5.5)].all()

    press(easel, "Invert")
    draw_anew(easel)
    np.testing.assert_array_equal(painted(forms[-1]), ~mask)
    press(easel, "Clear")
    press(easel, "Erase")
    canvas_of(easel).press("[")
    by_mouse(easel, *middle)
    draw_anew(easel)
    assert_stroke(painted(forms[-1]), *middle)
    press(easel, "Undo")
    press(easel, "Undo")
    draw_anew(easel)
    np.testing.assert_array_equal(painted(forms[-1]), ~mask)


def test_the_drawn_picture_is_taken(page: Page, forms: list[Form]) -> None:
    press(page, "Take the drawn picture")
    expect(page.get_by_role("alert")).to_contain_text("No picture has been drawn yet")
    page.get_by_label("Steps", exact=True).fill("2")
    press(page, "Generate")
    wait_until(page, "Done.")
    drawn = pixels(page.locator("#left"))
    press(page, "Take the drawn picture")
    np.testing.assert_array_equal(pixels(page.locator("#original")), drawn)
    draw_anew(page)
    np.testing.assert_array_equal(decoded(forms[0][1]["image"][0]), drawn)


@pytest.mark.parametrize(
    ("size", "drawn"), [((9, 30), "8x32"), ((400, 100), "64x16"), ((40, 24), "40x24")]
)
def test_the_size_is_that_of_the_picture_or_fits_the_model(
    page: Page, tmp_path: Path, size: tuple[int, int], drawn: str
) -> None:
    """The tiny model draws multiples of 4, and 32x32 by default."""
    Image.new("RGB", size).save(tmp_path / "p.png")
    page.get_by_label("Picture file").set_input_files(tmp_path / "p.png")
    for side, value in zip(("Width", "Height"), drawn.split("x"), strict=True):
        expect(page.get_by_label(side, exact=True)).to_have_value(value)


def test_errors_of_edits_are_shown(easel: Page, tmp_path: Path) -> None:
    alert = easel.get_by_role("alert")
    easel.get_by_label("Strength").fill("0")
    easel.get_by_label("Strength").press("Enter")
    expect(alert).to_contain_text("strength must be above 0")
    expect(easel.get_by_label("Strength")).to_be_focused()
    expect(easel.get_by_label("Strength")).to_have_attribute("aria-invalid", "true")
    (tmp_path / "text.png").write_text("hello")
    easel.get_by_label("Picture file").set_input_files(tmp_path / "text.png")
    expect(alert).to_have_text("The file cannot be read: choose a PNG, JPEG or WebP picture.")
    expect(easel.get_by_label("Strength")).not_to_have_attribute("aria-invalid", "true")


def test_a_model_that_takes_no_pictures_has_no_easel(page: Page) -> None:
    expect(page.get_by_role("heading", name="Edit a picture")).to_be_visible()
    models = json.loads(page.request.get("/v1/models").body())
    assert models["data"][0]["intaglio"]["edits"] is True
    models["data"][0]["intaglio"]["edits"] = False
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.reload()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    expect(page.get_by_role("heading", name="Edit a picture")).to_be_hidden()


def with_references(page: Page, edits: bool) -> None:
    """Let the page see a model that takes references."""
    models = json.loads(page.request.get("/v1/models").body())
    models["data"][0]["intaglio"] |= {"edits": edits, "references": 4}
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.reload()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Steps", exact=True).fill("2")


def test_a_model_that_takes_references_only_has_no_mask(
    page: Page, forms: list[Form], picture: Path
) -> None:
    with_references(page, edits=False)
    page.get_by_label("Picture file").set_input_files(picture)
    expect(page.get_by_alt_text("The picture that is edited")).to_be_visible()
    expect(page.locator("#painted")).to_have_text("The picture is a reference for the prompt.")
    expect(canvas_of(page)).to_be_hidden()
    for label in ("Brush", "Strength", "Mask blur", "Padding"):
        expect(page.get_by_label(label, exact=True)).to_be_hidden()
    for name in ("Erase", "Undo", "Redo", "Clear", "Invert"):
        expect(page.get_by_role("button", name=name)).to_be_hidden()
    draw_anew(page)
    assert list(forms[0][1]) == ["image"]
    assert forms[0][0].strength is None


def test_a_picture_without_paint_and_strength_is_a_reference(page: Page, picture: Path) -> None:
    with_references(page, edits=True)
    page.get_by_label("Picture file").set_input_files(picture)
    strength, said = page.get_by_label("Strength"), page.locator("#painted")
    expect(said).to_have_text(
        "Without paint and strength, the picture is a reference for the prompt."
    )
    expect(strength).to_have_attribute("placeholder", "none")
    press(page, "Invert")
    expect(said).to_have_text("100 % is drawn anew.")
    expect(strength).to_have_attribute("placeholder", "0.6")
