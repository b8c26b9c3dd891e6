"""Test which device runs and which message explains that a device does not work.

The tests use ONNX Runtime's builds for CPUs and for GPUs.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import bundles
from tests.conftest import onnxruntime_library
from tests.integration.conftest import PROMPT, Command, check


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_card(vendor: str) -> bool:
    """Whether lspci would list a GPU or an accelerator of the vendor, or a GPU may be elsewhere: in
    WSL, on NVIDIA's boards, and where there is no PCI bus."""
    if any(Path("/dev", name).exists() for name in ("dxg", "nvhost-gpu", "nvmap")):
        return True
    bus = Path("/sys/bus/pci/devices")
    kinds = {
        (d / "class").read_text()[:4] for d in bus.glob("*") if vendor in (d / "vendor").read_text()
    }
    return not bus.exists() or bool(kinds & {"0x03", "0x12"})


without_driver = pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")


@pytest.fixture(scope="module", params=[0, 100])  # CUDA_SUCCESS, CUDA_ERROR_NO_DEVICE
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Build a fake NVIDIA driver and return the result of its cuInit and an environment for it."""
    folder = tmp_path_factory.mktemp("driver")
    source = f"""
    #include <string.h>
    int cuInit(unsigned flags) {{ return {request.param} + 0 * flags; }}
    int cuDeviceGetCount(int* count) {{ *count = 1; return 0; }}
    int cuDeviceGet(int* device, int number) {{ *device = number; return 0; }}
    int cuDeviceGetName(char* text, int size, int device) {{
      strncpy(text, "Imaginary 1", size); return 0 * device; }}
    int cuDeviceTotalMem_v2(size_t* bytes, int device) {{ *bytes = 24ul << 30; return 0 * device; }}
    int cuGetErrorString(int error, const char** text) {{
      *text = error == 100 ? "no CUDA-capable device is detected" : "?"; return 0;
    }}"""
    words = ["g++", "-x", "c", "-", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*words, "-o", folder / "libcuda.so.1"], input=source, text=True, check=True)
    return request.param, {"LD_LIBRARY_PATH": str(folder), "PATH": "/usr/bin:/bin"}


def flags(device: str, library: Path) -> list[str]:
    return ["--prompt", PROMPT, "--steps", "2", "--device", device, "--onnxruntime", str(library)]


PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@pytest.mark.parametrize("device", PROVIDERS)
def test_a_library_without_the_provider(command: Command, forked_bundle: Path, device: str) -> None:
    library = onnxruntime_library()
    says = f"device {device} does not work here: ONNX Runtime "
    said = check(command, 4, says, "generate", forked_bundle, *flags(device, library))
    assert f"has no {PROVIDERS[device]}" in said
    if has_card("0x10de"):
        assert "; pip install 'intaglio[cuda]'" in said
        assert ("TensorRT 10" in said) == (device == "tensorrt")
        assert said.endswith(", or use --device cpu")
    else:
        assert said.endswith(", and this machine has no NVIDIA GPU; use --device cpu")


@without_driver
@pytest.mark.parametrize("device", PROVIDERS)
def test_no_driver(command: Command, forked_bundle: Path, gpu_build: Path, device: str) -> None:
    says = f"device {device} does not work here: there is no NVIDIA driver (libcuda.so.1)"
    said = check(command, 4, says, "generate", forked_bundle, *flags(device, gpu_build))
    assert "--device cpu" in said
    assert not (forked_bundle / "engines").exists()


@without_driver
@pytest.mark.parametrize("device", PROVIDERS)
def test_a_driver_without_cuda_or_without_a_gpu(
    command: Command, forked_bundle: Path, gpu_build: Path, device: str, driver: Any
) -> None:
    code, environment = driver
    says = "no CUDA-capable device is detected" if code else "libcublas"
    line = ["generate", forked_bundle, *flags(device, gpu_build)]
    said = check(command, 4, says, *line, env=environment)
    assert ("cannot open shared object file" in said) == (code == 0)
    assert ("nvidia-smi" in said) == (code != 0 and has_card("0x10de"))
    assert ("has no NVIDIA GPU" in said) == (code != 0 and not has_card("0x10de"))


@without_driver
@pytest.mark.parametrize("driver", [0], indirect=True)
@pytest.mark.parametrize("device", PROVIDERS)
def test_a_card_that_is_not_there(
    command: Command, forked_bundle: Path, gpu_build: Path, device: str, driver: Any
) -> None:
    says = f"device {device}:1 does not work here: the NVIDIA driver finds 1 GPU, "
    line = ["generate", forked_bundle, *flags(f"{device}:1", gpu_build)]
    assert "nvidia-smi" in check(command, 4, says, *line, env=driver[1])


def test_the_gpu_build_draws_the_same_on_the_processor(
    command: Command, forked_bundle: Path, gpu_build: Path
) -> None:
    for name, library in (("gpu", gpu_build), ("cpu", onnxruntime_library())):
        command.draw(
            forked_bundle, *flags("cpu", library), "--latents-out", f"{name}.npy",
            "--report", f"{name}.json",
        )  # fmt: skip
    got, want = (np.load(command.folder / f"{name}.npy") for name in ("gpu", "cpu"))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    report = json.loads((command.folder / "gpu.json").read_text())
    version = gpu_build.name.removeprefix("libonnxruntime.so.")
    assert report["backend"].startswith(f"ONNX Runtime {version}, cpu, ")
    assert (report["device"], report["precision"], report["reason"]) == ("cpu", "float32", "")


@without_driver
def test_auto_is_the_default_and_quiet_on_a_plain_machine(
    command: Command, forked_bundle: Path
) -> None:
    command.draw(forked_bundle, "--steps", 2, "--report", "report.json")
    report = json.loads((command.folder / "report.json").read_text())
    assert report["device"] == "cpu"
    assert "auto" not in report["backend"]
    assert "engines" not in report["reason"]
    reasons = report["reason"].split("; ")
    tried = [reason.partition(": ")[0] for reason in reasons if ": " in reason]
    assert tried == ["cuda", "openvino:gpu", "webgpu"]
    assert "tensorrt-rtx would round float32 to TensorFloat-32" in reasons


@without_driver
def test_auto_takes_tensorrt_rtx_for_narrow_types_only(command: Command) -> None:
    bundle = bundles.bundle(dtype="bfloat16")
    command.draw(bundle, "--steps", 1, "--report", "report.json")
    reason = json.loads((command.folder / "report.json").read_text())["reason"]
    assert reason.startswith("tensorrt-rtx: its plugin")
    assert reason.index("tensorrt-rtx: ") < reason.index("cuda: ") < reason.index("webgpu: ")


@without_driver
def test_auto_says_why_a_gpu_build_runs_on_the_processor(
    command: Command, forked_bundle: Path, gpu_build: Path
) -> None:
    done = command("generate", forked_bundle, *flags("auto", gpu_build), "--report", "report.json")
    assert done.returncode == 0
    note, end, rest = done.stderr.partition("\n")
    assert note.startswith("intaglio: note: running on cpu because cuda: ")
    assert "there is no NVIDIA driver" in note
    assert (end, rest) == ("\n", "")
    report = json.loads((command.folder / "report.json").read_text())
    assert report["device"] == "cpu"
    assert "cuda: there is no NVIDIA driver" in report["reason"]


@without_driver
@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt"])
def test_auto_says_why_engines_are_not_used(
    command: Command, forked_bundle: Path, tmp_path: Path, backend: str
) -> None:
    bundle = shutil.copytree(forked_bundle, tmp_path / "bundle")
    engines = bundle / "engines" / f"{backend}-sm89-float32-0123abcd"
    engines.mkdir(parents=True)
    (engines / "engine.json").write_text("{}")
    done = command("generate", bundle, "--prompt", PROMPT, "--steps", 2, "--report", "report.json")
    assert done.returncode == 0
    assert done.stderr.startswith("intaglio: note: running on cpu because ")
    assert done.stderr.count("\n") == 1
    assert backend in done.stderr
    reason = json.loads((command.folder / "report.json").read_text())["reason"]
    assert reason.startswith(f"{backend}: give --device {backend} to run its engines; ")


@pytest.mark.parametrize("subcommand", ["generate", "embed", "bench"])
def test_an_unknown_device(command: Command, forked_bundle: Path, subcommand: str) -> None:
    line = [subcommand, forked_bundle, "--device", "tpu"]
    line += [] if subcommand == "bench" else ["--prompt", PROMPT, "-o", "out"]
    said = check(command, 2, 'there is no device "tpu"', *line)
    names = [device.split(" ")[0] for device in command("devices").stdout.splitlines()]
    names = [re.sub(r":[0-9]+$", "", name) for name in names if name]
    assert said.endswith(f"is one of auto, {', '.join(dict.fromkeys(names))}")


@pytest.mark.skipif(has_card("0x8086"), reason="this machine may have the device")
@pytest.mark.parametrize("kind", ["gpu", "npu"])
def test_the_error_and_the_list_say_that_hardware_is_missing(
    command: Command, forked_bundle: Path, kind: str
) -> None:
    """An error that named a package only would be followed by another after its installation."""
    flags = ["--prompt", PROMPT, "--device", f"openvino:{kind}"]
    says = f"this machine has no Intel {kind.upper()}"
    said = check(command, 4, f"{says}; use --device cpu", "generate", forked_bundle, *flags)
    assert "pip install" not in said
    assert listed(command)[f"openvino:{kind}"]["remedy"] == says


def test_a_precision_that_the_device_lacks(command: Command, forked_bundle: Path) -> None:
    says = "--precision bfloat16 does not fit device cpu, which computes in float32: leave it out"
    line = ["generate", forked_bundle, "--prompt", PROMPT, "--device", "cpu", "-o", "a.png"]
    said = check(command, 2, says, *line, "--precision", "bfloat16")
    assert "`intaglio devices`" in said


def listed(command: Command, *args: Any, **options: Any) -> dict[str, dict[str, Any]]:
    """What `intaglio devices` says of each device; its lines for people fit a terminal."""
    done = command("devices", *args, **options)
    assert max(map(len, done.stdout.splitlines())) < 80
    devices = json.loads(command("devices", "--json", *args, **options).stdout)
    names = re.findall(r"^(\S+) +(?:yes|no) ", done.stdout, re.MULTILINE)
    assert names == [device["device"] for device in devices]
    return {device["device"]: device for device in devices}


def test_devices_say_what_runs_them_and_what_would(command: Command) -> None:
    devices = listed(command)
    assert devices["cpu"]["works"]
    assert devices["cpu"]["runtime"] == f"ONNX Runtime {version('onnxruntime')}"
    nvidia = "pip install 'intaglio[cuda]'"
    if not has_card("0x10de"):
        nvidia = "this machine has no NVIDIA GPU"
    if "cuda" in devices:
        assert devices["cuda"]["remedy"] == nvidia
    for kind in ("gpu", "npu"):
        lacks = f"this machine has no Intel {kind.upper()}"
        remedy = devices[f"openvino:{kind}"]["remedy"]
        assert (remedy == lacks) == (not has_card("0x8086")), remedy


@without_driver
@pytest.mark.parametrize("driver", [0], indirect=True)
def test_devices_number_the_cards(command: Command, gpu_build: Path, driver: Any) -> None:
    devices = listed(command, "--onnxruntime", gpu_build, env=driver[1])
    assert "cuda" not in devices
    assert "libcublas" in devices["cuda:0"]["reason"]


@without_driver
def test_a_package_that_replaced_a_part_of_the_other(
    command: Command, forked_bundle: Path, gpu_build: Path, tmp_path: Path
) -> None:
    """What pip leaves of onnxruntime-gpu when onnxruntime of the same version comes after it."""
    library = onnxruntime_library()
    for file in (library, gpu_build.with_name("libonnxruntime_providers_cuda.so")):
        (tmp_path / file.name).symlink_to(file)
    shutil.copy(library, tmp_path / "libonnxruntime.so.1")
    line = ["generate", forked_bundle, *flags("cuda", tmp_path / "libonnxruntime.so.1")]
    said = check(command, 4, "has replaced a part of onnxruntime-gpu", *line)
    if not has_card("0x10de"):
        assert said.endswith(", and this machine has no NVIDIA GPU; use --device cpu")
        return
    assert "; pip install --force-reinstall --no-deps onnxruntime-gpu, or use --device cpu" in said


def test_the_cache_is_listed_and_emptied(command: Command, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    entry = tmp_path / "cache/intaglio/compiled/tensorrt-0123"
    entry.mkdir(parents=True)
    (entry / "lock").touch()
    (entry / "engine").write_bytes(bytes(2_500_000))
    assert "2.5 MB  tensorrt-0123\n" in command("cache", env=environment).stdout
    cleared = command("cache", "--clear", env=environment)
    assert (cleared.returncode, cleared.stderr) == (0, "")
    assert cleared.stdout == f"removed 2.5 MB from {entry.parent}\n"
    assert not list(entry.parent.iterdir())


def test_inspect_lists_engines(command: Command, forked_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(forked_bundle, tmp_path / "bundle")
    assert json.loads(command("inspect", bundle, "--json").stdout)["engines"] == {}
    sides = {"batch": [1, 1, 4], "height": [16, 32, 48], "width": [16, 32, 48]}
    report: dict[str, Any] = {
        "backend": "tensorrt-rtx", "version": "1.7.1.116", "targets": ["sm89", "sm120"],
        "precision": "float32", "profiles": [sides],
    }  # fmt: skip
    component = {"plan": "forked.plan", "plan_bytes": 40954924}
    file = bundle / "engines" / "tensorrt-rtx-sm89+sm120-float32-59e7185e" / "engine.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(report | {"components": {"transformer/forked.onnx": component}}))
    shown = json.loads(command("inspect", bundle, "--json").stdout)["engines"]
    assert shown == {
        file.parent.name: report | {"flags": [], "plans": {"transformer/forked.onnx": 40954924}}
    }
    people = command("inspect", bundle).stdout
    line = (
        f"{file.parent.name}: version 1.7.1.116, 1 plan, 40954924 bytes,"
        " batch=1:1:4,height=16:32:48,width=16:32:48"
    )
    assert re.search(rf"^engines +{re.escape(line)}$", people, re.MULTILINE)


def test_inspect_says_which_engines_are_broken(
    command: Command, forked_bundle: Path, tmp_path: Path
) -> None:
    """A damaged engine.json is reported, but it does not stop the bundle from running."""
    bundle = shutil.copytree(forked_bundle, tmp_path / "bundle")
    file = bundle / "engines" / "tensorrt-rtx-sm89-float32-59e7185e" / "engine.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    shown = command("inspect", bundle)
    assert shown.returncode == 0
    assert f"{file.parent.name}: engine.json is not what intaglio build writes" in shown.stdout
