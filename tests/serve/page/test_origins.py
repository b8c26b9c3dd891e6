"""Pages of other origins that call the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error

from tests.serve.conftest import PROMPT, serving
from tests.serve.proxy import proxied

# The headers of a request by OpenAI's client for JavaScript, `openai` on npm.
CLIENT = {
    "Authorization": "Bearer none",
    "Content-Type": "application/json",
    "X-Stainless-Arch": "unknown",
    "X-Stainless-Lang": "js",
    "X-Stainless-OS": "Unknown",
    "X-Stainless-Package-Version": "5.0.0",
    "X-Stainless-Retry-Count": "0",
    "X-Stainless-Runtime": "browser:chrome",
    "X-Stainless-Runtime-Version": "140.0.0",
    "X-Stainless-Timeout": "600",
}
FETCH = """async ([url, headers, fields]) => {
  const body = JSON.stringify(fields);
  return (await fetch(url, {method: "POST", headers, body})).status;
}"""


@pytest.mark.reported(
    "ollama/ollama#4388",
    "ollama/ollama#8342",
    "pollinations/pollinations#10165",
    "keycloak/keycloak#25522",
)
@pytest.mark.parametrize("allowed", [True, False])
def test_a_page_of_an_allowed_origin_may_use_openais_client(
    browser: Browser, server: Any, forked_bundle: Path, allowed: bool
) -> None:
    """A browser lets a page of an origin in `cors` send the headers of OpenAI's client."""
    page = browser.new_page()
    with proxied(server.url) as elsewhere:  # any page of another origin
        page.goto(f"{elsewhere}/healthz")
        cors = f"{elsewhere.upper()}/" if allowed else "http://localhost"
        with serving(forked_bundle, cors=[cors]) as called:
            call = [f"{called.url}/v1/images/generations", CLIENT, {"prompt": PROMPT, "steps": 1}]
            if allowed:
                assert page.evaluate(FETCH, call) == 200
            else:
                with pytest.raises(Error, match="Failed to fetch"):
                    page.evaluate(FETCH, call)
    page.close()
