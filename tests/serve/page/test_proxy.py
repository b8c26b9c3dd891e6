"""The page behind a reverse proxy."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.serve.page.browser import PROMPT, Watch, pixels, press, wait_until
from tests.serve.proxy import proxied


@pytest.mark.reported("Comfy-Org/ComfyUI_frontend#2958")
def test_the_page_draws_below_a_path(browser: Browser, server: Any) -> None:
    """The page fetches its picture under a path and a host that the server does not know."""
    context = browser.new_context()
    context.set_default_timeout(120_000)
    watch = Watch(context.new_page())
    page = watch.page
    with proxied(server.url, "/some/path") as url:
        page.goto(f"{url}/")
        expect(page.get_by_role("button", name="Generate")).to_be_enabled()
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        press(page, "Generate")
        wait_until(page, "Done.")
        assert pixels(page.locator("#left")).any()
        assert f"{url}/v1/images/generations" in page.locator("#code").inner_text()
        context.close()
    assert watch.problems == []
