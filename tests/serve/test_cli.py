"""What `intaglio serve` refuses to start with, in one sentence; and what it puts at /."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from intaglio.serve.api.page import add_page
from intaglio.serve.app import create_app
from intaglio.serve.cli import Server
from intaglio.serve.engine.request_queue import RequestQueue
from intaglio.serve.models.registry import Models
from intaglio.serve.settings import ServerSettings, read_settings
from intaglio.serve.transport.connections import listen
from tests.integration.conftest import ROOT, absent
from tests.serve.conftest import serving

SHIPPED = ROOT / "build" / "bundles" / "fashion-sd3"


def refused(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and the one line of stderr. Nothing stays behind."""
    with tempfile.TemporaryDirectory() as temporary:
        run = subprocess.run(
            [sys.executable, "-m", "intaglio", "serve", *arguments],
            capture_output=True,
            env={**os.environ, "TMPDIR": temporary},
            text=True,
        )
        assert not list(Path(temporary).glob("intaglio-*"))
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("intaglio: ")
    return run.returncode, line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "unknown setting prot"),
        ("[limits]\nstep = 5", "unknown setting limits.step"),
        ("[limits]\nsteps = 0", "limits.steps is invalid"),
        ("port = 70000", "port is invalid"),
        ("grace = inf", "grace is invalid"),
        ('proxies = ["proxy.example"]', "proxies.0 is invalid"),
        ("[limits]\ndeadline = nan", "limits.deadline is invalid"),
        ("port = ", "cannot read --config"),
        ("memory_bytes = 1000", "memory_bytes is 1000"),
        ('port = 0\napi_keys = "none.txt"', "cannot read api_keys in "),
        ('port = 0\nimages = "/dev/null/images"', "cannot use the images folder"),
    ],
)
def test_a_setting_that_does_not_fit(
    forked_bundle: Path, tmp_path: Path, text: str, words: str
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(text)
    code, line = refused(forked_bundle, "--config", config)
    assert code in {2, 3}
    assert words in line


def test_paths_in_a_file_are_seen_from_its_folder(forked_bundle: Path, tmp_path: Path) -> None:
    config, keys = tmp_path / "serve.toml", tmp_path / "keys.txt"
    config.write_text('api_keys = "keys.txt"\nimages = "images"')
    keys.write_text("# none")
    code, said = refused(forked_bundle, "--config", config, "--port", "0")
    assert (code, said) == (
        3,
        f"intaglio: api_keys in {config}, {keys}, has no key: write one key per line",
    )
    keys.write_text("secret")
    settings = read_settings(config, {})
    assert (settings.api_keys, settings.images) == (keys, tmp_path / "images")
    other = Path("other.txt")
    assert read_settings(config, {"api_keys": other}).api_keys == other


def test_a_refused_start_leaves_no_folder(forked_bundle: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text('images = "images"')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(forked_bundle, "--config", config, "--port", str(taken.getsockname()[1]))
    (tmp_path / "keys.txt").touch()
    refused(forked_bundle, "--config", config, "--port", "0", "--api-keys", tmp_path / "keys.txt")
    assert not (tmp_path / "images").exists()


def test_bundles_are_checked_at_start(forked_bundle: Path, tmp_path: Path) -> None:
    code, line = refused(tmp_path)
    assert (code, "bundle.json" in line) == (3, True)
    code, line = refused(forked_bundle, forked_bundle)
    assert (code, f"NAME={forked_bundle}" in line) == (2, True)


@pytest.mark.parametrize(("device", "code"), [("gpu", 2), ("tensorrt-rtx", 4)])
def test_a_device_that_is_not_there_is_said(forked_bundle: Path, device: str, code: int) -> None:
    """As `intaglio generate` says it: there is none of that name, the bundle has no engines."""
    generate = subprocess.run(
        [sys.executable, "-m", "intaglio", "generate", forked_bundle, "--device", device],
        capture_output=True,
        text=True,
    )
    assert refused(forked_bundle, "--device", device) == (code, generate.stderr.strip())


def test_make_serve_starts_the_shipped_model() -> None:
    if not (SHIPPED / "bundle.json").exists():
        absent("needs the shipped model's bundle: make demo")
    # What it is made of is not made again here: other tests use it.
    old = [".venv/ready", ".venv/dependencies", "build/bundles/fashion-sd3/bundle.json"]
    line = ["make", "serve", "FLAGS=--port 0", *(f"--old-file={name}" for name in old)]
    with subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        try:
            said = process.stdout.readline()
            url = said.removeprefix("intaglio: serving on ").strip()
            with httpx2.Client(base_url=url, timeout=120) as client:
                body = {"model": "fashion-sd3", "prompt": "a dress", "steps": 1}
                assert client.post("/v1/images/generations", json=body).status_code == 200
            (server,) = psutil.Process(process.pid).children()
            server.terminate()
            assert process.wait(120) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_taken_port_is_said(forked_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = refused(forked_bundle, "--port", port)
    assert (code, f"--port {port}" in line) == (4, True)


def test_a_file_without_keys_is_refused(forked_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# none\n\n")
    code, line = refused(forked_bundle, "--port", "0", "--api-keys", keys)
    assert (code, "has no key" in line) == (3, True)


def start(app: FastAPI) -> None:
    """Runs a server to its end."""
    server = Server(app, ServerSettings())
    asyncio.run(server.serve([listen("127.0.0.1", 0)]))


def test_a_signal_while_it_starts_ends_it() -> None:
    ended = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)  # the loop sees it
        yield
        ended.append(True)

    start(FastAPI(lifespan=lifespan))
    assert ended


def test_a_drain_that_fails_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(self: RequestQueue, grace: float) -> None:
        monkeypatch.undo()  # the one at the end is in order
        raise RuntimeError("not foreseen")

    async def signalled(self: Server, sockets: list[socket.socket] | None = None) -> None:
        await startup(self, sockets)
        os.kill(os.getpid(), signal.SIGTERM)

    startup = Server.startup
    monkeypatch.setattr(RequestQueue, "drain", failing)
    monkeypatch.setattr(Server, "startup", signalled)
    start(create_app(Models([], ServerSettings()), ServerSettings()))


# A model whose loading takes an hour, in threads that Python would wait for.
SLOW = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from intaglio import Pipeline
from intaglio.serve.engine.worker import Worker
Worker.join.__defaults__ = (0.1,)
def slow(*args, **keywords):
    print("loading", flush=True)
    ThreadPoolExecutor(1).submit(time.sleep, 3600).result()
Pipeline.open = slow
from intaglio.__main__ import main
main()
"""


def test_it_ends_while_a_model_is_loaded(forked_bundle: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("grace = 0")
    line = [sys.executable, "-c", SLOW, "serve", forked_bundle, "--port", "0", "--config", config]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            url = process.stdout.readline().split()[-1]
            httpx2.post(f"{url}/v1/jobs", json={"prompt": "a boot"}, timeout=120).raise_for_status()
            assert process.stdout.readline() == "loading\n"
            process.terminate()
            assert process.wait(120) == 0
        finally:
            process.kill()


def test_a_start_that_fails_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("not foreseen")
        yield

    with pytest.raises(SystemExit) as ended:
        start(FastAPI(lifespan=lifespan))
    assert ended.value.code
    assert "serving on" not in capsys.readouterr().out


def test_the_pages_files_have_types_and_a_policy(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    files = {
        "index.html": "text/html", "draw.js": "text/javascript", "parts/a.js": "text/javascript",
        "style.css": "text/css", "mark.svg": "image/svg+xml",
    }  # fmt: skip
    for name in files:
        (tmp_path / name).write_text("x")
    app = FastAPI()
    add_page(app, tmp_path)
    client = TestClient(app)
    for name, kind in [*files.items(), ("", "text/html")]:
        answer = client.get(f"/{name}")
        assert answer.headers["content-type"].partition(";")[0] == kind
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'; img-src 'self' data:;" in policy
        assert "unsafe" not in policy
    for name in ("../conftest.py", "parts", "none.js", "%2e%2e/secret"):
        assert client.get(f"/{name}").status_code == 404


def test_other_origins_are_let_in_only_when_told(forked_bundle: Path) -> None:
    origin = {"Origin": "http://elsewhere"}
    with serving(forked_bundle) as server:
        answer = server.client.get("/v1/models", headers=origin)
        assert "access-control-allow-origin" not in answer.headers
    with serving(forked_bundle, cors=["http://elsewhere"]) as server:
        answer = server.client.get("/v1/models", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "http://elsewhere"
        other = server.client.get("/v1/models", headers={"Origin": "http://other"})
        assert "access-control-allow-origin" not in other.headers


def test_what_does_not_exist_is_not_found(forked_bundle: Path) -> None:
    with serving(forked_bundle) as server:
        for path in ("/none", "/v1/none", "/v1/images/none.png", "/v1/images/..%2f..%2fx.png"):
            answer = server.client.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["message"]
        wrong = server.client.put("/v1/jobs/any", json={})
        assert wrong.status_code == 405
        assert wrong.headers["allow"] == "DELETE, GET"
        assert wrong.json()["error"]["message"] == "this path accepts DELETE, GET only: see /docs"
