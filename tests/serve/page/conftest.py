"""A real browser that shows the server's page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.integration.conftest import absent
from tests.serve.page.browser import PROMPT, Watch


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system. Skips if there is none, which is never so in CI."""
    chromium = shutil.which("chromium")
    if not chromium:
        absent("there is no chromium on the PATH")
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def watch(browser: Browser, server: Any) -> Iterator[Watch]:
    """The page, ready for input. The end checks that it had no error and asked no other server."""
    context = browser.new_context(
        base_url=server.url, permissions=["clipboard-read", "clipboard-write"]
    )
    context.set_default_timeout(120_000)
    watch = Watch(context.new_page())
    watch.page.goto("/")
    expect(watch.page.get_by_role("button", name="Generate")).to_be_enabled()
    watch.page.get_by_label("Prompt", exact=True).fill(PROMPT)
    yield watch
    assert watch.problems == []
    asked = {urlsplit(request.url)[:2] for request in watch.requests}
    assert asked <= {urlsplit(server.url)[:2], ("data", "")}
    context.close()


@pytest.fixture
def page(watch: Watch) -> Page:
    return watch.page
