"""The examples, settings and fields in docs/serving.md."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from intaglio.serve.api.schemas import ImageRequest
from intaglio.serve.settings import ServerSettings
from tests.serve.conftest import Running, serving

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def shown(forked_bundle: Path) -> Iterator[Running]:
    with serving(f"fashion-sd3={forked_bundle}") as running:
        yield running


def here(block: str, server: Running) -> str:
    assert "http://127.0.0.1:8000" in block
    return block.replace("http://127.0.0.1:8000", server.url)


def test_curl(shown: Running, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    run = subprocess.run(
        ["bash", "-c", here(block, shown)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert f'"url":"{shown.url}/v1/images/' in run.stdout


@pytest.mark.parametrize("block", PYTHON, ids=["openai"])
def test_python(shown: Running, block: str, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(here(block, shown))
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    images = list(tmp_path.glob("*.png"))
    assert images
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)


def test_the_settings_shown_are_the_defaults() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)
    values = tomllib.loads(block)
    assert ServerSettings.model_validate(values) == ServerSettings()
    optional = set(re.findall(r"^# (\w+) =", block, re.M))
    assert set(values) | optional == set(ServerSettings.model_fields)
    assert set(values["limits"]) == set(ServerSettings().limits.__class__.model_fields)


def test_the_fields_shown_are_those_of_a_request() -> None:
    (table,) = re.findall(r"^## Requests\n\n(.*?)\n\n", PAGE, re.M | re.S)
    shown = re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines()))
    # class_label stands in the row of the prompt, which it replaces.
    assert {*shown, "class_label"} == set(ImageRequest.model_fields)
    assert "`class_label`" in table
