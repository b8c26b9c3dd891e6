"""What tests do and see in the page."""

from __future__ import annotations

from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import (
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Response,
    expect,
)

PROMPT = """it's a "dark" boot"""

PIXELS = """(image) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


class Watch:
    """What a page asks for, and what goes wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[Request] = []
        self.responses: list[Response] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self.requests.append(request))
        page.on("response", lambda response: self.responses.append(response))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        # Chromium logs every refusal, which tests look at in `responses`.
        if message.type in {"error", "warning"} and "status of" not in message.text:
            self.problems.append(message.text)

    def asked(self, path: str, method: str = "POST") -> list[Request]:
        """The requests to `path` so far."""
        return [r for r in self.requests if r.method == method and urlsplit(r.url).path == path]

    def created(self) -> list[str]:
        """The ids of all jobs that the server took."""
        posts = self.asked("/v1/jobs")
        return [r.json()["id"] for r in self.responses if r.request in posts and r.status == 202]

    def jobs(self) -> list[dict[str, Any]]:
        """The bodies of all jobs that were asked for."""
        return [request.post_data_json for request in self.asked("/v1/jobs")]


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def wait_until(page: Page, status: str) -> None:
    expect(page.get_by_role("status")).to_have_text(status)


def pixels(image: Locator) -> NDArray[np.uint8]:
    """[H, W, 3]: what the browser made of an <img>."""
    expect(image).to_be_visible()
    flat = image.evaluate(PIXELS)
    width = image.evaluate("(image) => image.naturalWidth")
    return np.array(flat, np.uint8).reshape(-1, width, 4)[..., :3]


def decoded(png: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(BytesIO(png)).convert("RGB"))


def assert_same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    """One request's picture, drawn twice: in another batch a sum may round to the next level."""
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).max() <= 1
