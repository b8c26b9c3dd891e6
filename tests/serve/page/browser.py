"""Actions on the page, and what they show."""

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
    """The requests of a page, their responses, and the errors on it."""

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
        # Chromium logs every error status, which tests check in `responses`.
        if message.type in {"error", "warning"} and "status of" not in message.text:
            self.problems.append(message.text)

    def asked(self, path: str, method: str = "POST") -> list[Request]:
        """Return the requests to `path` so far."""
        return [r for r in self.requests if r.method == method and urlsplit(r.url).path == path]

    def created(self) -> list[str]:
        """Return the ids of all jobs that the server accepted."""
        posts = self.asked("/v1/jobs")
        return [r.json()["id"] for r in self.responses if r.request in posts and r.status == 202]

    def jobs(self) -> list[dict[str, Any]]:
        """Return the bodies of all requests for jobs."""
        return [request.post_data_json for request in self.asked("/v1/jobs")]


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def wait_until(page: Page, status: str) -> None:
    expect(page.get_by_role("status")).to_have_text(status)


def pixels(image: Locator) -> NDArray[np.uint8]:
    """Return the decoded pixels of an <img>, [H, W, 3]."""
    expect(image).to_be_visible()
    flat = image.evaluate(PIXELS)
    width = image.evaluate("(image) => image.naturalWidth")
    return np.array(flat, np.uint8).reshape(-1, width, 4)[..., :3]


def seen(page: Page) -> NDArray[np.uint8]:
    """Return the colour on the screen at the centre of each pixel of the picture, [H, W, 3]."""
    frame = page.locator("#frame")
    screen = decoded(frame.screenshot())
    width, height = page.locator("#left").evaluate("(i) => [i.naturalWidth, i.naturalHeight]")
    rows = ((np.arange(height) + 0.5) * screen.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * screen.shape[1] / width).astype(int)
    return screen[np.ix_(rows, columns)]


def decoded(png: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(BytesIO(png)).convert("RGB"))


def assert_same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    """Compare pictures of one request, which may differ by one level if their batches differ."""
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).max() <= 1
