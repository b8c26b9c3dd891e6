"""The page's errors, API keys and accessibility."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from tests.serve.conftest import LONG, fetch
from tests.serve.page.browser import PROMPT, Watch, pixels, press, wait_until

PHONE = {"width": 360, "height": 740}


def test_an_error_is_shown_with_the_servers_message(page: Page, watch: Watch) -> None:
    page.get_by_label("Steps", exact=True).fill("1000000000")
    press(page, "Generate")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("steps")
    [answer] = [r for r in watch.responses if r.request in watch.asked("/v1/jobs")]
    assert answer.status == 400
    assert alert.inner_text() == answer.json()["error"]["message"]
    expect(page.get_by_label("Steps", exact=True)).to_be_focused()
    expect(page.get_by_label("Steps", exact=True)).to_have_attribute("aria-invalid", "true")

    page.get_by_label("Steps", exact=True).fill("2")
    press(page, "Generate")
    wait_until(page, "Done.")
    assert alert.inner_text() == ""
    expect(page.get_by_label("Steps", exact=True)).not_to_have_attribute("aria-invalid", "true")


def test_an_invalid_window_is_focused(page: Page) -> None:
    page.get_by_text("More", exact=True).click()
    page.get_by_label("DG from").fill("0.8")
    page.get_by_label("DG to").fill("0.2")
    page.get_by_text("More", exact=True).click()
    press(page, "Generate")
    expect(page.get_by_role("alert")).to_contain_text("dg_window")
    expect(page.get_by_label("DG from")).to_be_focused()


def test_the_note_on_a_truncated_prompt_is_shown(page: Page, watch: Watch, server: Any) -> None:
    page.get_by_label("Prompt", exact=True).fill("boot " * 200)
    press(page, "Compare")
    wait_until(page, "Done.")
    sent = fetch(f"{server.url}/v1/jobs/{watch.created()[0]}").json()["notes"]
    assert sent
    notes = page.locator("#notes")
    expect(notes).to_have_text("; ".join(sent))  # once, not for each of the four
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    press(page, "Generate")
    wait_until(page, "Done.")
    expect(notes).to_be_empty()


def test_the_api_documentation_asks_no_other_server(page: Page) -> None:
    """`watch` checks the requests."""
    page.goto("/docs")
    expect(page.get_by_role("heading", name="Intaglio")).to_be_visible()
    expect(page.get_by_role("link", name="/v1/images/generations")).to_be_visible()


def test_an_unreachable_server_is_reported(page: Page, watch: Watch) -> None:
    page.route("**/v1/jobs", lambda route: route.abort("connectionrefused"))
    press(page, "Generate")
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    problems = watch.problems
    assert [p for p in problems if "ERR_CONNECTION_REFUSED" not in p] == []
    problems.clear()


def test_an_interrupted_stream_is_resumed(page: Page, watch: Watch) -> None:
    cut = {"status": 200, "content_type": "text/event-stream", "body": ": nothing yet\r\n\r\n"}
    page.route("**/events", lambda route: route.fulfill(**cut), times=1)
    press(page, "Generate")
    wait_until(page, "Done.")
    assert pixels(page.locator("#left")).any()


def test_a_job_that_cannot_be_followed_is_cancelled(page: Page, watch: Watch, server: Any) -> None:
    page.route("**/events", lambda route: route.abort("connectionreset"))
    page.get_by_label("Steps", exact=True).fill(str(LONG))
    press(page, "Generate")
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    [job] = watch.created()
    url = f"{server.url}/v1/jobs/{job}"
    # The events end when the job ends.
    assert "event: error" in fetch(f"{url}/events").text
    assert fetch(url).json()["status"] == "cancelled"
    problems = watch.problems
    assert [p for p in problems if "ERR_CONNECTION_RESET" not in p] == []
    problems.clear()


def test_an_api_key_is_requested_when_it_is_needed(browser: Browser, server: Any) -> None:
    page = browser.new_context(base_url=server.url).new_page()
    keys: list[str | None] = []  # the keys that the page sent
    valid = "first"

    def guard(route: Route) -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == f"Bearer {valid}":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "an API key is missing"}})

    page.route(re.compile("/v1/(models|jobs)"), guard)
    page.goto("/")
    alert, field = page.get_by_role("alert"), page.get_by_label("API key")
    expect(alert).to_have_text("an API key is missing")
    expect(field).to_be_focused()
    field.fill(valid)
    field.press("Enter")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Steps", exact=True).fill("3")
    press(page, "Generate")
    wait_until(page, "Done.")
    expect(field).to_be_hidden()
    assert keys == [None, *["Bearer first"] * 3]  # models twice, the job, its events

    valid = "second"
    press(page, "Generate")
    expect(field).to_be_focused()
    field.fill(valid)
    field.press("Enter")
    press(page, "Generate")
    wait_until(page, "Done.")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("3")
    assert keys[4:] == ["Bearer first", *["Bearer second"] * 2]
    shown = page.locator("#code").inner_text()
    assert shown.count("INTAGLIO_API_KEY") == 2
    assert "second" not in shown
    page.context.close()


def test_a_model_that_draws_by_class_has_classes_for_a_prompt(page: Page, watch: Watch) -> None:
    models = json.loads(page.request.get("/v1/models").body())
    details = models["data"][0]["intaglio"]
    details |= {"prompt": False, "classes": [0, 1, 2], "sizes": None}
    details["defaults"] |= {"cfg_scale": [4, 2]}
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.reload()
    page.get_by_role("combobox", name="Class", exact=True).select_option("2")
    expect(page.get_by_label("Prompt", exact=True)).to_be_hidden()
    expect(page.get_by_label("Width")).to_be_disabled()
    press(page, "Generate")
    # The server's own model draws by prompt, so the server rejects the class.
    expect(page.get_by_role("alert")).to_contain_text("class_label")
    [job] = watch.jobs()
    assert (job["class_label"], job["cfg_scale"]) == (2, [4, 2])
    assert not {"prompt", "negative_prompt"} & set(job)
    page.route("**/v1/models", Route.continue_)


def open_all(page: Page) -> None:
    """Show everything that the page can show at once."""
    page.get_by_text("More", exact=True).click()
    page.get_by_text("Advanced guidance", exact=True).click()
    press(page, "Compare")
    wait_until(page, "Done.")
    press(page, "Take the drawn picture")
    expect(page.get_by_role("application", name="Mask")).to_be_visible()
    page.get_by_label("Steps", exact=True).fill("1000000000")
    press(page, "Generate")
    expect(page.get_by_role("alert")).to_contain_text("steps")
    page.locator("#key").evaluate("(form) => { form.hidden = false; }")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    open_all(page)
    results = Axe().run(page, options={"resultTypes": ["violations", "incomplete"]})
    assert results.violations_count == 0, results.generate_report()


def test_every_control_has_a_name(page: Page) -> None:
    open_all(page)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "image", "progressbar", "slider", "spinbutton", "textbox"}
    names: dict[str, list[str]] = {role: [] for role in roles}
    for node in nodes:
        if not node["ignored"] and (role := node["role"]["value"]) in roles:
            names[role].append(node.get("name", {}).get("value", ""))
    assert all(names.values()), names
    assert all(name for found in names.values() for name in found), names
    for found in (names["spinbutton"], names["combobox"], names["slider"], names["textbox"]):
        assert len(set(found)) == len(found), found


def test_a_phone_does_not_scroll_sideways(page: Page) -> None:
    page.set_viewport_size(PHONE)
    page.get_by_label("Prompt", exact=True).fill("a" * 300)
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    wide = "[...document.querySelectorAll('body *')].filter((e) => e.scrollWidth > innerWidth)"
    assert page.evaluate(f"{wide}.map((e) => e.outerHTML)") == []
