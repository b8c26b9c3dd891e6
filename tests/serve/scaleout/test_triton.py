"""A repository that `intaglio deploy triton` wrote, in a real Triton Inference Server."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException

import intaglio
from tests.integration.conftest import ENTRY_POINT, ROOT, absent
from tests.serve.conftest import PROMPT, wait_until

pytestmark = pytest.mark.alone
FOLDER = ROOT / "build" / "deps" / "triton"
SERVER, NUMPY = FOLDER / "pytriton" / "tritonserver", FOLDER / "python"
KINDS = {bytes: "BYTES", int: "INT64", float: "FP64"}


@dataclass(frozen=True)
class Triton:
    """A running Triton server."""

    client: InferenceServerClient
    repository: Path
    log: Path
    port: int

    @property
    def model(self) -> str:
        (config,) = self.repository.glob("*/config.pbtxt")
        return config.parent.name

    def jobs(self) -> list[dict[str, Any]]:
        """Return the model's log line of each finished job."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if '"event": "job"' in line]

    def infer(self, **values: list[list[Any]]) -> InferResult:
        """Send a request with a row of values for each image."""
        return self.client.infer(self.model, [tensor(n, v) for n, v in values.items()])


def tensor(name: str, rows: list[list[Any]]) -> InferInput:
    given = InferInput(name, [len(rows), len(rows[0])], KINDS[type(rows[0][0])])
    given.set_data_from_numpy(np.array(rows))
    return given


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def triton(forked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    if not SERVER.exists():
        absent("needs Triton: make build/deps/triton/ready")
    place = tmp_path_factory.mktemp("triton")
    repository, log = place / "repository", place / "log"
    subprocess.run([ENTRY_POINT, "deploy", "triton", forked_bundle, "-o", repository], check=True)
    (config,) = repository.glob("*/config.pbtxt")
    config.write_text(config.read_text().replace('string_value: "0"', 'string_value: "1"'))
    # Triton runs the system's Python, which gets this environment's packages and an older numpy.
    (model,) = repository.glob("*/1/model.py")
    packages = sysconfig.get_path("purelib")
    show = f"import site, sys\nsys.path.insert(0, {str(NUMPY)!r})\nsite.addsitedir({packages!r})\n"
    model.write_text(show + model.read_text())
    port = free_port()
    line = [
        SERVER / "bin" / "tritonserver", "--model-repository", repository,
        "--backend-directory", SERVER / "backends", "--allow-http", "false",
        "--allow-metrics", "false", "--grpc-address", "127.0.0.1", "--grpc-port", str(port),
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(line, stdout=output, stderr=output)
    client = InferenceServerClient(f"127.0.0.1:{port}")

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(InferenceServerException):
            return bool(client.is_server_ready())
        return False

    try:
        wait_until(ready)
        yield Triton(client, repository, log, port)
    finally:
        client.close()
        process.terminate()
        assert process.wait(240) == 0, log.read_text()


def assert_drawn(png: bytes, pipeline: intaglio.Pipeline, **options: Any) -> None:
    """Compare with generate(). In a batch, a value may round to the next level."""
    image = np.asarray(Image.open(io.BytesIO(png))).astype(int)
    expected = np.asarray(pipeline.generate(PROMPT, **options).images[0]).astype(int)
    assert np.abs(image - expected).max() <= 1


def test_each_row_is_the_image_of_generate(triton: Triton, pipeline: intaglio.Pipeline) -> None:
    answer = triton.infer(
        prompt=[[PROMPT.encode()]] * 3,
        seed=[[7], [8], [2**40]],
        cfg_scale=[[3.0, 1.5], [1.0, 1.0], [2.0, 2.0]],
        dg_window=[[0.0, 1.0], [0.5, 1.0], [0.0, 0.3]],
        steps=[[3], [4], [2]],
    )
    pngs = answer.as_numpy("png")
    assert pngs.shape == (3, 1)
    assert answer.as_numpy("seed").tolist() == [[7], [8], [2**40]]
    guided = {"cfg_scale": (3.0, 1.5), "dg_window": (0.0, 1.0)}
    assert_drawn(pngs[0, 0], pipeline, seeds=7, steps=3, **guided)
    guided = {"cfg_scale": (1.0, 1.0), "dg_window": (0.5, 1.0)}
    assert_drawn(pngs[1, 0], pipeline, seeds=8, steps=4, **guided)
    guided = {"cfg_scale": (2.0, 2.0), "dg_window": (0.0, 0.3)}
    assert_drawn(pngs[2, 0], pipeline, seeds=2**40, steps=2, **guided)


@pytest.mark.parametrize("skipped", [[5], [4, 6]])
def test_steps_are_skipped(triton: Triton, pipeline: intaglio.Pipeline, skipped: list[int]) -> None:
    fields = {"prompt": [[PROMPT.encode()]], "seed": [[7]], "steps": [[8]]}
    answer = triton.infer(**fields, skip_steps=[skipped], skip_tolerance=[[10.0]])
    assert_drawn(
        answer.as_numpy("png")[0, 0], pipeline, seeds=7, steps=8, skip_steps=skipped,
        skip_tolerance=10.0,
    )  # fmt: skip
    assert triton.jobs()[-1]["skip_steps"] == skipped


def test_the_bundle_has_the_defaults(triton: Triton, pipeline: intaglio.Pipeline) -> None:
    answer = triton.infer(prompt=[[PROMPT.encode()]])
    seed = int(answer.as_numpy("seed")[0, 0])
    assert_drawn(answer.as_numpy("png")[0, 0], pipeline, seeds=seed)


def test_different_requests_run_at_once(triton: Triton, pipeline: intaglio.Pipeline) -> None:
    """There are more requests than the batch has room for, of two sizes."""

    def ask(seed: int) -> bytes:
        size = [[b"40x24"]] if seed % 3 == 0 else [[b"32x32"]]
        fields = {
            "prompt": [[PROMPT.encode()]],
            "seed": [[seed]],
            "steps": [[20 + seed]],
            "size": size,
        }
        png: bytes = triton.infer(**fields).as_numpy("png")[0, 0]
        return png

    with ThreadPoolExecutor(20) as pool:
        pngs = list(pool.map(ask, range(20)))
    for seed, png in enumerate(pngs):
        width, height = (40, 24) if seed % 3 == 0 else (32, 32)
        assert_drawn(png, pipeline, seeds=seed, steps=20 + seed, width=width, height=height)


WRONG: dict[str, tuple[dict[str, list[list[Any]]], str]] = {
    "steps": ({"steps": [[100_000]]}, "steps 100000 exceeds this server's limit"),
    "one of two": ({"steps": [[2], [0]]}, "steps is invalid: .* greater than or equal to 1"),
    "size": ({"size": [[b"31x31"]]}, "give multiples of 4"),
    "window": ({"dg_window": [[0.8, 0.2]]}, "dg_window"),
    "not text": ({"negative_prompt": [[b"\xff"]]}, "negative_prompt is not UTF-8 at byte 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named(triton: Triton, name: str) -> None:
    fields, says = WRONG[name]
    rows = len(next(iter(fields.values())))
    with pytest.raises(InferenceServerException, match=says) as refused:
        triton.infer(prompt=[[PROMPT.encode()]] * rows, **fields)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_cancelled_request_makes_room(triton: Triton) -> None:
    """Long runs are cancelled, which frees the batch for a request of another size."""
    runs = {"prompt": [[PROMPT.encode()]], "size": [[b"128x128"]]}
    asked = [tensor(name, value) for name, value in {**runs, "steps": [[100]]}.items()]
    ended: list[Exception | None] = []
    calls = [
        triton.client.async_infer(triton.model, asked, lambda result, error: ended.append(error))
        for _ in range(7)
    ]
    triton.infer(**runs, steps=[[1]])
    for call in calls:
        call.cancel()
    wait_until(lambda: len(ended) == 7)
    assert {
        str(error.status()) for error in ended if isinstance(error, InferenceServerException)
    } == {"StatusCode.CANCELLED"}
    assert triton.infer(prompt=[[PROMPT.encode()]], steps=[[1]]).as_numpy("png").shape == (1, 1)
    long = [job for job in triton.jobs() if job["steps"] == 100 and job["size"] == "128x128"]
    # A request that was still in Triton's queue has no line.
    assert {job["status"] for job in long} == {"cancelled"}
    assert any("queued" in job["seconds"] for job in long), "none joined the batch"


def test_the_client_in_the_readme(triton: Triton, tmp_path: Path) -> None:
    text = (triton.repository / "README.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert "127.0.0.1:8001" in block
    (tmp_path / "client.py").write_text(block.replace("8001", str(triton.port)))
    subprocess.run([sys.executable, "client.py"], cwd=tmp_path, check=True)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
