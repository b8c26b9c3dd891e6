"""URLs in answers through a reverse proxy that has another host and adds a path."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import httpx2
import openai
import pytest
from pydantic import ValidationError

from intaglio.serve.settings import ServerSettings
from tests.serve.conftest import PROMPT, Running, fetch, serving
from tests.serve.proxy import proxied

FORWARDED = {"X-Forwarded-Host": "{host}", "X-Forwarded-Prefix": "/draw/"}


def image_urls(url: str) -> list[str]:
    """Return the URLs of images that the server names in each kind of answer."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    drawn = client.images.generate(prompt=PROMPT, extra_body={"steps": 1}).data
    assert drawn
    assert drawn[0].url
    with httpx2.Client(timeout=120) as plain:
        job = plain.post(f"{url}/v1/jobs", json={"prompt": PROMPT, "steps": 1}).json()["id"]
        events = plain.get(f"{url}/v1/jobs/{job}/events").text
        shown = plain.get(f"{url}/v1/jobs/{job}").json()["images"]
    return [drawn[0].url, *re.findall(r'"(http[^"]+\.png)"', events), *shown]


def assert_fetchable(url: str, names: list[str]) -> None:
    assert len(names) == 3
    for name in names:
        assert name.startswith(f"{url}/v1/images/")
        assert fetch(name).content.startswith(b"\x89PNG")
    docs = fetch(f"{url}/docs").text
    parts = re.findall(r"(?:href|src)=\"([^\"]+)\"|url: '([^']+)'", docs)
    assert len(parts) >= 4
    for part in parts:
        assert fetch(urljoin(url, "".join(part))).status_code == 200
    (server,) = fetch(f"{url}/openapi.json").json()["servers"]
    assert fetch(urljoin(url, f"{server['url']}/healthz")).status_code == 200


@pytest.mark.reported(
    "mudler/LocalAI#10482", "mudler/LocalAI#9145", "nextcloud/integration_openai#53"
)
def test_a_trusted_proxy_names_host_and_path(server: Running) -> None:
    """URLs of images can be fetched through the proxy that the request came through."""
    with proxied(server.url, "/draw", FORWARDED) as url:
        assert_fetchable(url, image_urls(url))
    outer = {"X-Forwarded-Host": "{host}, inner.example", "X-Forwarded-Prefix": "/draw, /more"}
    with proxied(server.url, "/draw/more", outer) as url:
        assert_fetchable(url, image_urls(url))
    assert all(name.startswith(f"{server.url}/v1/images/") for name in image_urls(server.url))


def test_other_proxies_are_not_trusted(forked_bundle: Path) -> None:
    with (
        serving(forked_bundle, proxies=[]) as server,
        proxied(server.url, "/draw", FORWARDED) as url,
    ):
        names = image_urls(url)
    assert all(name.startswith(f"{server.url}/v1/images/") for name in names)


@pytest.mark.reported("Comfy-Org/ComfyUI_frontend#2958", "xtekky/gpt4free#2740")
def test_the_public_url_is_that_of_the_images(forked_bundle: Path) -> None:
    """A proxy that forwards no header needs the setting public_url."""
    public = "https://images.example/draw"
    with serving(forked_bundle, public_url=f"{public}/") as server:
        with proxied(server.url, "/draw") as url:
            names = image_urls(url)
            assert all(name.startswith(f"{public}/v1/images/") for name in names)
            assert_fetchable(url, [name.replace(public, url) for name in names])
        assert server.client.get("/v1/models").status_code == 200  # without the prefix too


@pytest.mark.parametrize(
    "url", ["images.example", "ftp://images.example", "http://h/?a=b", "http://user@h", "http://"]
)
def test_a_public_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="public_url"):
        ServerSettings.model_validate({"public_url": url})
