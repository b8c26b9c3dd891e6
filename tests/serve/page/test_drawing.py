"""Drawing, comparing, snippets and history on the page, with a real browser and server."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page, expect

from tests.serve.conftest import LONG, fetch
from tests.serve.page.browser import (
    PROMPT,
    Watch,
    assert_same,
    decoded,
    pixels,
    press,
    seen,
    wait_until,
)

# Records every text and picture that the page shows during a run, however briefly.
RECORDER = """() => {
  window.shown = { steps: [], pictures: [] };
  new MutationObserver((records) => {
    for (const { addedNodes } of records) shown.steps.push(...[...addedNodes].map((n) => n.data));
  }).observe(document.getElementById("step"), { childList: true });
  new MutationObserver((records) => {
    for (const { target } of records) shown.pictures.push(target.src);
  }).observe(document.getElementById("left"), { attributeFilter: ["src"] });
}"""


def drawn_alone(server: Any, request: dict[str, Any]) -> NDArray[np.uint8]:
    """Draw `request` without the page, and return the pixels, [H, W, 3]."""
    url = f"{server.url}/v1/images/generations"
    answer = httpx2.post(url, json={**request, "response_format": "url"}, timeout=120)
    assert answer.status_code == 200, answer.text
    return decoded(fetch(answer.json()["data"][0]["url"]).content)


def drawn_by(server: Any, job: str) -> NDArray[np.uint8]:
    """Return the pixels of the job's picture, [H, W, 3]."""
    [url] = fetch(f"{server.url}/v1/jobs/{job}").json()["images"]
    return decoded(fetch(url).content)


def test_enter_draws_the_picture_that_the_server_draws(
    page: Page, watch: Watch, server: Any
) -> None:
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("Negative prompt").fill("a bag")
    page.get_by_label("Prompt", exact=True).press("Enter")
    wait_until(page, "Done.")

    [request] = watch.jobs()
    assert request | {"prompt": PROMPT, "negative_prompt": "a bag", "seed": 7} == request
    [job] = watch.created()
    drawn = drawn_by(server, job)
    np.testing.assert_array_equal(pixels(page.locator("#left")), drawn)
    assert_same(drawn, drawn_alone(server, request))
    # Small pictures are enlarged without smoothing.
    expect(page.locator("#left")).to_have_css("image-rendering", "pixelated")


def test_the_queue_every_step_and_previews_are_shown(page: Page, server: Any) -> None:
    page.evaluate(RECORDER)
    page.get_by_label("Steps", exact=True).fill("6")
    with server.full():
        press(page, "Generate")
        expect(page.locator("#step")).to_have_text("position 1 in the queue")
    wait_until(page, "Done.")

    shown = page.evaluate("shown")
    steps = [text for text in shown["steps"] if text.startswith("step ")]
    counts = [text.split(",")[0] for text in dict.fromkeys(steps)]
    assert counts == [f"step {k}/6" for k in range(1, 7)]
    sigmas = [float(text.split("σ ")[1]) for text in dict.fromkeys(steps)]
    assert sigmas == sorted(sigmas, reverse=True)
    assert len(set(sigmas)) == 6
    assert any(source.startswith("data:image/png") for source in shown["pictures"])
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 1)


def test_cancel_ends_the_job_at_the_server(page: Page, watch: Watch, server: Any) -> None:
    page.get_by_label("Steps", exact=True).fill(str(LONG))
    press(page, "Generate")
    expect(page.locator("#step")).to_contain_text("step ")
    page.get_by_role("button", name="Cancel").press("Enter")
    wait_until(page, "Cancelled.")

    [job] = watch.created()
    assert fetch(f"{server.url}/v1/jobs/{job}").json()["status"] == "cancelled"
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
    assert page.get_by_role("alert").inner_text() == ""


def test_a_new_run_replaces_the_old_one(page: Page, watch: Watch, server: Any) -> None:
    for side in ("Width", "Height"):  # a larger picture, so that a slow browser does not see it end
        page.get_by_label(side, exact=True).fill("64")
    page.get_by_label("Steps", exact=True).fill(str(LONG))
    press(page, "Generate")
    expect(page.locator("#step")).to_contain_text("step ")
    page.get_by_label("Steps", exact=True).fill("3")
    press(page, "Generate")
    wait_until(page, "Done.")
    old, new = watch.created()
    # The events of the old job end when it ends.
    assert "event: error" in fetch(f"{server.url}/v1/jobs/{old}/events").text
    np.testing.assert_array_equal(pixels(page.locator("#left")), drawn_by(server, new))
    expect(page.get_by_role("button", name="Restore:")).to_have_count(1)


def test_leaving_the_page_cancels_its_job(page: Page, watch: Watch, server: Any) -> None:
    page.get_by_label("Steps", exact=True).fill(str(LONG))
    press(page, "Generate")
    expect(page.locator("#step")).to_contain_text("step ")
    [job] = watch.created()
    url = f"{server.url}/v1/jobs/{job}"
    page.goto("/healthz")
    # The events end when the job ends.
    assert "event: error" in fetch(f"{url}/events").text
    assert fetch(url).json()["status"] == "cancelled"


def test_compare_draws_one_seed_four_ways(page: Page, watch: Watch, server: Any) -> None:
    page.get_by_label("CFG", exact=True).fill("3")
    page.get_by_label("DG", exact=True).fill("1.5")
    press(page, "Compare")
    wait_until(page, "Done.")

    jobs = watch.jobs()
    scales = [(job.pop("cfg_scale"), job.pop("dg_scale")) for job in jobs]
    assert sorted(scales) == [(1, 0), (1, 1.5), (3, 0), (3, 1.5)]
    assert all(job == jobs[0] for job in jobs)
    four = page.get_by_role("list", name="The same seed, guided four ways").get_by_role("listitem")
    expect(four).to_have_count(4)
    ways = {"Baseline": (1, 0), "CFG": (3, 0), "DG": (1, 1.5), "CFG+DG": (3, 1.5)}
    for item, (name, (cfg, dg)) in zip(four.all(), ways.items(), strict=True):
        assert item.inner_text().split("\n") == [name, f"CFG {cfg}, DG {dg}"]
        alone = drawn_alone(server, {**jobs[0], "cfg_scale": cfg, "dg_scale": dg})
        assert_same(pixels(item.get_by_role("img")), alone)
    pictures = [pixels(item.get_by_role("img")).astype(int) for item in four.all()]
    assert all(np.abs(a - b).max() > 4 for a, b in combinations(pictures, 2))


def test_the_divider_moves_by_keyboard(page: Page) -> None:
    press(page, "Compare")
    wait_until(page, "Done.")
    page.get_by_role("combobox", name="Left", exact=True).select_option("DG")
    page.get_by_role("combobox", name="Right", exact=True).select_option("CFG")
    divider = page.get_by_role("slider", name="Divider: DG to the left, CFG to the right")
    left, right = pixels(page.locator("#left")), pixels(page.locator("#right"))
    assert (left != right).any()
    four = page.get_by_role("list", name="The same seed, guided four ways").get_by_role("img")
    np.testing.assert_array_equal(left, pixels(four.nth(2)))
    np.testing.assert_array_equal(right, pixels(four.nth(1)))

    plain = np.s_[4:12, 2:-2]  # without the names, the line at an edge and its handle
    divider.press("End")
    np.testing.assert_array_equal(seen(page)[plain], left[plain])
    divider.press("Home")
    np.testing.assert_array_equal(seen(page)[plain], right[plain])
    for _ in range(50):
        divider.press("ArrowRight")
    expect(divider).to_have_value("50")
    half = left.shape[1] // 2
    screen = seen(page)
    np.testing.assert_array_equal(screen[4:12, 2 : half - 1], left[4:12, 2 : half - 1])
    np.testing.assert_array_equal(screen[4:12, half + 1 : -2], right[4:12, half + 1 : -2])


def test_a_guidance_that_is_off_is_compared_at_its_default(page: Page, watch: Watch) -> None:
    page.get_by_label("CFG", exact=True).fill("1")
    page.get_by_label("DG", exact=True).fill("0")
    press(page, "Compare")
    wait_until(page, "Done.")
    defaults = json.loads(page.request.get("/v1/models").body())["data"][0]["intaglio"]["defaults"]
    assert (defaults["cfg_scale"], defaults["dg_scale"]) in [
        (job["cfg_scale"], job["dg_scale"]) for job in watch.jobs()
    ]


def fill_all(page: Page) -> None:
    """Fill the form so that every field differs from its default."""
    page.get_by_label("Negative prompt").fill("a 'bag' of $HOME")
    page.get_by_label("Seed", exact=True).fill("11")
    page.get_by_label("Steps", exact=True).fill("5")
    page.get_by_label("CFG", exact=True).fill("3.5")
    page.get_by_label("DG", exact=True).fill("1.25")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("DG from").fill("0.2")
    page.get_by_label("CFG to").fill("0.8")


def fill_advanced(page: Page) -> None:
    """Choose another rule with a parameter, a CFG scale for each step, and blocks to skip."""
    page.get_by_text("Advanced guidance", exact=True).click()
    expect(page.get_by_label("Momentum")).to_be_hidden()
    page.get_by_label("CFG rule").select_option("apg")
    page.get_by_label("Momentum").fill("-0.25")
    page.get_by_label("Rescale").fill("0.5")
    page.get_by_label("Steps", exact=True).fill("3")
    page.get_by_label("CFG of each step").fill("3, 2 1.5")
    page.get_by_label("Blocks").fill("1, 2")
    page.get_by_label("Scale", exact=True).fill("2")
    page.get_by_label("Skipped from").fill("0")
    page.get_by_label("Skipped to").fill("1")


def test_advanced_guidance(page: Page, watch: Watch, server: Any) -> None:
    fill_advanced(page)
    press(page, "Generate")
    wait_until(page, "Done.")
    [request] = watch.jobs()
    wanted = {
        "guidance": "apg", "guidance_momentum": -0.25, "guidance_rescale": 0.5,
        "cfg_scale": [3, 2, 1.5], "slg_layers": [1, 2], "slg_scale": 2, "slg_window": [0, 1],
        "dg_scale": 0,
    }  # fmt: skip
    assert request | wanted == request
    assert not {"guidance_eta", "guidance_alpha", "slg_share", "dg_window"} & set(request)
    picture, text = pixels(page.locator("#left")), page.locator("#curl").inner_text()
    assert_same(picture, drawn_alone(server, request))

    page.get_by_label("CFG rule").select_option("cfg")
    for label in ("Blocks", "CFG of each step", "Rescale"):
        page.get_by_label(label).fill("")
    press(page, "Generate")
    wait_until(page, "Done.")
    plain = watch.jobs()[1]
    assert not (set(wanted) - {"cfg_scale", "dg_scale"}) & set(plain)
    assert plain["dg_scale"] > 0
    page.get_by_role("button", name="Restore:").last.click()
    assert page.locator("#curl").inner_text() == text
    np.testing.assert_array_equal(pixels(page.locator("#left")), picture)


@pytest.mark.parametrize(
    ("end", "value", "window"), [("from", "0.2", [0.2, 1]), ("to", "0.6", [0, 0.6])]
)
def test_an_open_end_of_a_window(
    page: Page, watch: Watch, end: str, value: str, window: list[float]
) -> None:
    page.get_by_text("Advanced guidance", exact=True).click()
    page.get_by_label("Blocks").fill("1")
    page.get_by_label("Scale", exact=True).fill("2")
    page.get_by_label(f"Skipped {end}").fill(value)
    press(page, "Generate")
    wait_until(page, "Done.")
    [request] = watch.jobs()
    assert request["slg_window"] == window


def test_compare_leaves_out_skipped_blocks(page: Page, watch: Watch) -> None:
    fill_advanced(page)
    press(page, "Compare")
    wait_until(page, "Done.")
    jobs = watch.jobs()
    assert len(jobs) == 4
    assert not any(name.startswith("slg_") for job in jobs for name in job)
    assert {job["cfg_scale"] == 1 for job in jobs if "guidance" not in job} == {True}


def copied(page: Page, button: str, word: str) -> str:
    """Press `button`, and return the text in the clipboard as soon as it contains `word`."""
    press(page, button)
    text = "navigator.clipboard.readText()"
    page.wait_for_function(f"async (word) => (await {text}).includes(word)", arg=word)
    found: str = page.evaluate(text)
    return found


def test_curl_and_python_draw_the_same_picture(page: Page, watch: Watch, tmp_path: Path) -> None:
    fill_all(page)
    press(page, "Generate")
    wait_until(page, "Done.")
    picture = pixels(page.locator("#left"))
    assert watch.jobs()[0]["cfg_window"] == [0, 0.8]

    command = copied(page, "Copy curl", "curl ")
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    url = json.loads(ran.stdout)["data"][0]["url"]
    assert_same(decoded(fetch(url).content), picture)

    program = copied(page, "Copy Python", "import ")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert_same(decoded((tmp_path / "picture.png").read_bytes()), picture)


def test_history_restores_request_and_picture(page: Page) -> None:
    fill_all(page)
    press(page, "Generate")
    wait_until(page, "Done.")
    picture, text = pixels(page.locator("#left")), page.locator("#curl").inner_text()
    page.get_by_label("Prompt", exact=True).fill("a dress")
    page.get_by_label("Negative prompt").fill("")
    page.get_by_label("DG from").fill("0")
    press(page, "Roll a new seed")
    assert page.get_by_label("Seed", exact=True).input_value() != "11"
    press(page, "Generate")
    wait_until(page, "Done.")
    assert page.locator("#curl").inner_text() != text

    history = page.get_by_role("button", name="Restore:")
    expect(history).to_have_count(2)
    history.last.click()
    assert page.locator("#curl").inner_text() == text
    np.testing.assert_array_equal(pixels(page.locator("#left")), picture)
