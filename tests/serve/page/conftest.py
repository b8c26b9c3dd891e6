"""A real browser on the server's page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.serve.page.browser import PROMPT, Watch

CHROMIUM = shutil.which("chromium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests of this folder where there is no browser."""
    if CHROMIUM:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="there is no chromium on the PATH"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Any) -> Iterator[Page]:
    """The page, ready. Afterwards: nothing went wrong, and nothing was asked of anyone else."""
    context = browser.new_context(
        base_url=server.url, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    watch = page.watch = Watch(page)  # type: ignore[attr-defined]
    page.goto(server.url)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    yield page
    assert watch.problems == []
    asked = {urlsplit(request.url)[:2] for request in watch.requests}
    assert asked <= {urlsplit(server.url)[:2], ("data", "")}
    context.close()


@pytest.fixture
def watch(page: Page) -> Watch:
    found: Watch = page.watch  # type: ignore[attr-defined]
    return found
