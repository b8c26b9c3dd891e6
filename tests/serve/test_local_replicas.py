"""Devices with a process each, on ONNX Runtime's build for WebGPU and a Vulkan device in software.

The device fails for real: its driver goes away, or its process is killed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from intaglio import UnavailableError, _core
from intaglio.serve.local_replicas import LocalReplicas
from intaglio.serve.models import registry
from intaglio.serve.models.registry import Models
from intaglio.serve.settings import ServerSettings
from tests.integration.conftest import ROOT, webgpu_build
from tests.integration.test_webgpu import SWIFTSHADER
from tests.serve.conftest import wait_until
from tests.serve.test_faults import Process

__all__ = ["webgpu_build"]  # a fixture

CODE = """
import sys
from intaglio import UnavailableError
from intaglio.serve.models.registry import Models
from intaglio.serve.settings import ServerSettings
bundle, device, *chosen = sys.argv[1:]
devices = {"tiny": chosen[0]} if chosen else None
models = Models([f"tiny={bundle}"], ServerSettings(device=device), devices)
models.leave_if_lost(UnavailableError("a run failed"))
print("still here")
"""


class Driver:
    """A Vulkan driver that can be taken away and put back."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.file = folder / "icd.json"
        self.give()
        package = folder / "site" / "onnxruntime"  # as pip installs onnxruntime-webgpu
        (package / "capi").mkdir(parents=True)
        (package / "__init__.py").touch()
        for file in library.parent.glob("*.so*"):
            (package / "capi" / file.name).symlink_to(file)
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{package.parent}:{ROOT}",
            "VK_ICD_FILENAMES": str(self.file),
        }

    def give(self) -> None:
        described = json.loads(SWIFTSHADER.read_text())
        library = SWIFTSHADER.parent / described["ICD"]["library_path"]
        described["ICD"]["library_path"] = str(library)
        self.file.write_text(json.dumps(described))

    def take(self) -> None:
        self.file.unlink()


@pytest.fixture
def driver(tmp_path: Path, webgpu_build: Path) -> Driver:
    return Driver(tmp_path, webgpu_build)


@contextmanager
def serve(bundle: Path, driver: Driver, devices: str) -> Iterator[Process]:
    """Run `intaglio serve` on these devices."""
    log = driver.file.parent / "log"
    line = [sys.executable, "-m", "intaglio", "serve", str(bundle), "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        [*line, "--device", devices], stdout=subprocess.PIPE, stderr=log.open("w"), text=True,
        env=driver.environment,
    ) as process:  # fmt: skip
        assert process.stdout
        try:
            address = process.stdout.readline()
            assert address, log.read_text()
            yield Process(process, address.split()[-1], log)
        finally:
            process.terminate()


def replicas(server: Process) -> list[psutil.Process]:
    """Return the processes of the devices, in the order of the devices."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        with suppress(psutil.ZombieProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return sorted(found, key=psutil.Process.create_time)


def events(server: Process, name: str) -> list[dict[str, str]]:
    """Return the lines of the log with that event; SwiftShader writes other lines into it."""
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in map(json.loads, lines) if line["event"] == name]


def ready(server: Process) -> httpx2.Response:
    return server.client.get("/readyz")


def test_a_server_without_a_working_device_says_so_until_it_works(
    forked_bundle: Path, driver: Driver
) -> None:
    with serve(forked_bundle, driver, "webgpu") as server:
        assert ready(server).json() == {"status": "ok"}
        (replica,) = replicas(server)
        driver.take()
        replica.kill()
        wait_until(lambda: "no GPU" in ready(server).text)
        assert ready(server).status_code == 503
        assert ready(server).json()["status"] == "failed"
        assert "device webgpu does not work here" in ready(server).json()["reason"]
        answer = server.draw(steps=1)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "device_unavailable"
        assert "no GPU" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert server.client.get("/healthz").status_code == 200
        driver.give()
        wait_until(lambda: ready(server).status_code == 200)
        (lost,) = events(server, "replica_lost")
        assert "ended by SIGKILL" in lost["reason"]


def test_a_device_that_fails_leaves_its_jobs_to_others(forked_bundle: Path, driver: Driver) -> None:
    with serve(forked_bundle, driver, "cpu,webgpu") as server:
        cpu, webgpu = replicas(server)
        driver.take()
        webgpu.kill()
        wait_until(lambda: bool(events(server, "replica_refused")))
        assert ready(server).status_code == 200, "the CPU still works"

        def draw() -> bytes:
            job = server.post_job(steps=100, seed=4, size="64x64")
            if cpu.is_running():
                wait_until(lambda: server.status(job) == "running")
                cpu.send_signal(signal.SIGSEGV)
            wait_until(lambda: server.status(job) == "done")
            (url,) = server.client.get(f"/v1/jobs/{job['id']}").json()["images"]
            return server.client.get(url).content

        interrupted = draw()
        lost = [event["reason"] for event in events(server, "replica_lost") if "reason" in event]
        assert any("device cpu failed: its process was ended by SIGSEGV" in why for why in lost)
        assert interrupted == draw()
        restarted = replicas(server)
        assert restarted
    wait_until(lambda: not any(replica.is_running() for replica in restarted))


def test_a_device_that_is_not_there_at_the_start(forked_bundle: Path, driver: Driver) -> None:
    driver.take()
    line = [sys.executable, "-m", "intaglio", "serve", str(forked_bundle), "--port", "0"]
    done = subprocess.run(
        [*line, "--device", "cpu,webgpu"], env=driver.environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "intaglio: device webgpu does not work here" in done.stderr


@pytest.mark.parametrize(
    ("devices", "lost"), [("webgpu", True), ("cpu", False), ("auto", False), ("auto webgpu", True)]
)
def test_a_process_ends_only_when_its_device_is_lost(
    forked_bundle: Path, driver: Driver, devices: str, lost: bool
) -> None:
    """auto, which takes the CPU where no GPU works, may have chosen webgpu before."""
    driver.take()
    done = subprocess.run(
        [sys.executable, "-c", CODE, forked_bundle, *devices.split()], env=driver.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (4 if lost else 0), done.stderr
    assert ("still here" in done.stdout) is not lost


def test_a_model_keeps_the_device_that_auto_chose(
    forked_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    make = _core.make_backend
    monkeypatch.setattr(
        registry._core, "make_backend", lambda o, b: asked.append(o.device) or make(o, b)
    )
    models = Models([f"tiny={forked_bundle}"], ServerSettings())
    (model,) = models
    assert models.check_devices() == {"tiny": "cpu"}
    models.check_devices()
    assert asked == ["auto", "cpu"]
    unchecked = Models([f"tiny={forked_bundle}"], ServerSettings(), {"tiny": "webgpu"})
    assert [model.device for model in unchecked] == ["webgpu"]
    loaded = Models([f"tiny={forked_bundle}"], ServerSettings(threads=1))
    (model,) = loaded
    loaded.acquire(model)
    assert model.device == "cpu"


def test_a_replica_that_crashes_at_the_start(
    forked_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a driver may do it: the process ends before it says anything."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'multiprocessing.spawn' in ' '.join(sys.orig_argv): os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="device cpu failed: its process was ended by SIGA"):
        LocalReplicas([str(forked_bundle)], ServerSettings(device="cpu"))


def test_the_evaluations_of_replicas_are_counted(forked_bundle: Path, driver: Driver) -> None:
    with serve(forked_bundle, driver, "webgpu") as server:
        server.draw(steps=6, skip_interval=2, skip_tolerance=1000, dg_scale=0).raise_for_status()
        page = server.client.get("/metrics").text
    assert re.search(r"^intaglio_evaluations_total{.*} 4.0$", page, re.MULTILINE)


@pytest.mark.parametrize("devices", ["cuda:0,cuda:0", "cuda:0, cuda", "openvino,openvino:cpu"])
def test_a_device_is_named_once(devices: str) -> None:
    with pytest.raises(ValueError, match="names a device twice"):
        ServerSettings(device=devices)


def test_names_of_devices() -> None:
    assert ServerSettings(device=" cuda:0, cuda:1").devices == ["cuda:0", "cuda:1"]
    with pytest.raises(ValueError, match="auto is one device"):
        ServerSettings(device="auto,cuda:1")
