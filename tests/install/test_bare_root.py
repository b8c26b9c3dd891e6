"""The published wheel in a root folder with Python and nothing else, as the container has it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

import intaglio
from tests.install.conftest import CONTAINERFILE, DIST, Root
from tests.integration.conftest import PROMPT

DRAW = ("--prompt", PROMPT, "--steps", "2", "--seed", "5", "--dg-scale", "1")


def test_the_dependencies_agree(bare_root: Root) -> None:
    done = bare_root.run("pip", "check")
    assert (done.returncode, done.stdout) == (0, "No broken requirements found.\n")


def test_generate_draws_the_same_picture_as_here(bare_root: Root, forked_bundle: Path) -> None:
    line = ["intaglio", "generate", "/bundles/model", *DRAW, "-o", "/tmp/out.png"]
    done = bare_root.run(*line)
    assert (done.returncode, done.stdout) == (0, "/tmp/out.png\n"), done.stderr
    pipeline = intaglio.Pipeline.open(forked_bundle)
    here = pipeline.generate(PROMPT, steps=2, seeds=5, dg_scale=1.0).images[0]
    with Image.open(bare_root.folder / "tmp" / "out.png") as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(here))


def test_import(bare_root: Root) -> None:
    done = bare_root.run("python", "-c", "import intaglio; print(intaglio.__version__)")
    assert (done.returncode, done.stdout) == (0, f"{intaglio.__version__}\n"), done.stderr


def test_nothing_but_the_c_library_comes_from_the_system(bare_root: Root) -> None:
    """No library of a distribution that is linked, as libpng was, is in the root folder."""
    package = next((bare_root.folder / "venv" / "lib").glob("python3*/site-packages/intaglio"))
    needed = subprocess.run(
        ["readelf", "-d", package / "bin" / "intaglio", *package.glob("lib/*.so*")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = set(re.findall(r"\(NEEDED\).*\[(.*?)\]", needed))
    assert names <= {
        "libintaglio.so.0", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6",
        "ld-linux-x86-64.so.2",
    }  # fmt: skip


def test_licences_of_what_is_linked(bare_root: Root) -> None:
    package = next((bare_root.folder / "venv" / "lib").glob("python3*/site-packages/intaglio"))
    texts = {path.parent.name: path.read_text("utf-8", errors="replace")
             for path in package.glob("share/intaglio/licenses/*/*") if path.is_file()}  # fmt: skip
    assert set(texts) == {
        "cli11", "libpng", "nanobind", "nlohmann-json", "onnxruntime", "pybind11", "rhash",
        "robin-map", "utf8proc", "zlib",
    }  # fmt: skip
    assert all("opyright" in text for text in texts.values())


def json_list(instruction: str) -> list[str]:
    """The words of an instruction of the container file."""
    found = re.search(rf"^{instruction} (\[.*\])$", CONTAINERFILE.replace("\\\n", " "), re.M)
    assert found, instruction
    words: list[str] = json.loads(found[1])
    return words


@pytest.fixture(scope="module")
def served(bare_root: Root) -> Iterator[int]:
    """The port of the container's server, which its user runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [*json_list("ENTRYPOINT"), *json_list("CMD"), "--port", str(port)]
    process = subprocess.Popen(bare_root.line(*line), env=bare_root.environment)
    try:
        yield port
    finally:
        process.terminate()
        assert process.wait(30) in {0, 143}


def test_the_container_serves_and_is_healthy(bare_root: Root, served: int) -> None:
    command = [word.replace(":8000/", f":{served}/") for word in json_list(r"HEALTHCHECK.*CMD")]
    deadline = time.monotonic() + 60
    while (health := bare_root.run(*command)).returncode and time.monotonic() < deadline:
        time.sleep(0.5)
    assert health.returncode == 0, health.stderr
    client = OpenAI(base_url=f"http://127.0.0.1:{served}/v1", api_key="none", max_retries=0)
    answer = client.images.generate(prompt=PROMPT, response_format="b64_json")
    assert answer.data
    assert answer.data[0].b64_json
    wrong = [word.replace("readyz", "absent") for word in command]
    assert bare_root.run(*wrong).returncode != 0


def test_the_size_of_the_container_is_documented(bare_root: Root) -> None:
    """docs/install.md says what the steps of the container file add."""
    venv = bare_root.folder / "venv"
    size = sum(path.lstat().st_size for path in venv.rglob("*") if not path.is_symlink())
    page = (DIST.parents[1] / "docs" / "install.md").read_text(encoding="utf-8")
    documented = re.search(r"adds (\d+) MB to its base", page)
    assert documented
    assert abs(size / 1e6 - int(documented[1])) < 0.1 * size / 1e6
