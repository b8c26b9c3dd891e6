"""The command `intaglio serve`: errors at start, signals, and the page's files."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path

import httpx2
import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from intaglio.__main__ import GROUP, run_python
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


Refused = Callable[..., tuple[int, str]]


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Refused:
    """Runs the command in this process: its exit code, and the only line that it prints."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(*arguments: str | Path) -> tuple[int, str]:
        (command,) = entry_points(group=GROUP, name="serve")
        code = run_python(command, [str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert not list(temporary.iterdir()), "a refused start left a folder"
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("intaglio: ")
        return code, line

    return run


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "unknown setting prot: use port"),
        ("threads = 999", "threads 999: give a number from 1 to"),
        ("[limits]\nstep = 5", "unknown setting limits.step: use limits.steps"),
        ("abcdefgh = 1", "unknown setting abcdefgh: remove it"),
        ("[limits]\nsteps = 0", "limits.steps is invalid"),
        ("port = 70000", "port is invalid"),
        ("grace = inf", "grace is invalid"),
        ('proxies = ["proxy.example"]', "proxies.0 is invalid"),
        ('cors = ["localhost:5173"]', "localhost:5173 is no origin: give SCHEME://HOST or"),
        ('cors = ["http://a/b"]', "cors.0 is invalid"),
        ('cors = ["http://user@a"]', "cors.0 is invalid"),
        ("[limits]\ndeadline = nan", "limits.deadline is invalid"),
        ("port = ", "cannot read --config"),
        ("memory_bytes = 1000", "memory_bytes is 1000"),
        ('port = 0\napi_keys = "none.txt"', "cannot read api_keys in "),
        ('port = 0\nimages = "/dev/null/images"', "cannot use the images folder"),
    ],
)
def test_an_invalid_setting_is_named(
    forked_bundle: Path, tmp_path: Path, refused: Refused, text: str, words: str
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(text)
    code, line = refused(forked_bundle, "--config", config)
    assert code in {2, 3}
    assert words in line


def test_paths_in_a_file_are_relative_to_it(
    forked_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    config, keys = tmp_path / "serve.toml", tmp_path / "keys.txt"
    config.write_text('api_keys = "keys.txt"\nimages = "images"')
    keys.write_text("# none")
    code, line = refused(forked_bundle, "--config", config, "--port", "0")
    assert (code, line) == (
        3,
        f"intaglio: api_keys in {config}, {keys}, has no key: write one key per line",
    )
    keys.write_text("secret")
    with config.open("a") as file:
        file.write('\nprovider_library = "p.so"')
    settings = read_settings(config, {})
    assert (settings.api_keys, settings.images) == (keys, tmp_path / "images")
    assert settings.provider_library == tmp_path / "p.so"
    other = Path("other.txt")
    assert read_settings(config, {"api_keys": other}).api_keys == other


def test_files_may_begin_with_a_byte_order_mark(
    forked_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    config, keys = tmp_path / "serve.toml", tmp_path / "keys.txt"
    config.write_text('api_keys = "keys.txt"', "utf-8-sig")
    keys.write_text("secret", "utf-8-sig")
    with serving(forked_bundle, api_keys=read_settings(config, {}).api_keys) as server:
        answer = server.client.get("/v1/models", headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200
    keys.write_text("secret", "utf-16")
    code, line = refused(forked_bundle, "--port", "0", "--config", config)
    assert (code, line.endswith(f"{keys}, is not UTF-8: save it as UTF-8")) == (3, True)
    config.write_text("port = 0", "utf-16")
    code, line = refused(forked_bundle, "--config", config)
    assert (code, f"cannot read --config {config}: 'utf-8' codec" in line) == (3, True)


def test_a_refused_start_leaves_no_folder(
    forked_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text('images = "images"')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(forked_bundle, "--config", config, "--port", str(taken.getsockname()[1]))
    (tmp_path / "keys.txt").touch()
    refused(forked_bundle, "--config", config, "--port", "0", "--api-keys", tmp_path / "keys.txt")
    assert not (tmp_path / "images").exists()


def test_bundles_are_checked_at_start(
    forked_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    code, line = refused(tmp_path)
    assert (code, "bundle.json" in line) == (3, True)
    code, line = refused(forked_bundle, forked_bundle)
    assert (code, f"NAME={forked_bundle}" in line) == (2, True)


@pytest.mark.parametrize(
    ("flag", "code"),
    [("--device=gpu", 2), ("--device=tensorrt-rtx", 4), ("--precision=bfloat16", 2)],
)
def test_a_missing_device_is_reported(forked_bundle: Path, flag: str, code: int) -> None:
    """The whole command in a process of its own, with the message of `intaglio generate`."""
    generate, serve = (
        subprocess.run(
            [sys.executable, "-m", "intaglio", name, forked_bundle, flag],
            capture_output=True,
            text=True,
        )
        for name in ("generate", "serve")
    )
    assert (serve.returncode, serve.stdout) == (code, "")
    # The server names its settings, which may come from a file, without dashes.
    assert serve.stderr.replace("--", "") == generate.stderr.replace("--", "")
    assert serve.stderr.startswith("intaglio: ")
    assert serve.stderr.count("\n") == 1


def test_make_serve_starts_the_shipped_model() -> None:
    if not (SHIPPED / "bundle.json").exists():
        absent("needs the shipped model's bundle: make demo")
    # Do not rebuild what other tests use.
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


def test_a_taken_port_is_reported(forked_bundle: Path, refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = refused(forked_bundle, "--port", port)
    assert (code, f"--port {port}" in line) == (4, True)


def test_a_file_without_keys_is_refused(
    forked_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# none\n\n")
    code, line = refused(forked_bundle, "--port", "0", "--api-keys", keys)
    assert (code, "has no key" in line) == (3, True)


def start(app: FastAPI) -> None:
    """Run a server until it ends."""
    server = Server(app, ServerSettings())
    asyncio.run(server.serve([listen("127.0.0.1", 0)]))


def test_a_signal_during_start_ends_the_server() -> None:
    ended = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)  # so that the loop handles the signal
        yield
        ended.append(True)

    start(FastAPI(lifespan=lifespan))
    assert ended


def test_a_failing_drain_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(self: RequestQueue, grace: float) -> None:
        monkeypatch.undo()  # the second call, at the end, succeeds
        raise RuntimeError("unexpected")

    async def signalled(self: Server, sockets: list[socket.socket] | None = None) -> None:
        await startup(self, sockets)
        os.kill(os.getpid(), signal.SIGTERM)

    startup = Server.startup
    monkeypatch.setattr(RequestQueue, "drain", failing)
    monkeypatch.setattr(Server, "startup", signalled)
    start(create_app(Models([], ServerSettings()), ServerSettings()))


# Loading this model takes an hour, in threads that Python would wait for at exit.
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


def test_it_ends_while_a_model_is_loading(forked_bundle: Path, tmp_path: Path) -> None:
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


def test_a_failed_start_has_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("unexpected")
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


def test_other_origins_are_allowed_by_setting_only(forked_bundle: Path) -> None:
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
        assert wrong.headers["allow"] == "DELETE, GET, HEAD"
        allowed = "this path accepts DELETE, GET, HEAD only: see /docs"
        assert wrong.json()["error"]["message"] == allowed
