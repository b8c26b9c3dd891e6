"""Install each extra that brings a provider into a fresh environment, and ask which devices it has.

`python tests/try_extras.py [EXTRA ...]` writes a row for each order in which pip may install the
packages. It fails if the provider is missing in one, or if a package is there that reports to
somebody. pip downloads up to 1.5 GB for `cuda`. Each environment is removed before the next one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The devices that an extra is for, and the orders: each is a list of what pip is told to install,
# in which {} is Intaglio's wheel.
PLUGIN_ORDERS = [["{}[EXTRA]"], ["{}", "{}[EXTRA]"], ["{}[EXTRA]", "--force-reinstall onnxruntime"]]
CUDA_ORDERS = [
    ["{}[cuda]"],
    ["{}", "{}[cuda]"],
    ["onnxruntime-gpu<1.32", "{}[cuda]"],
    ["{}[cuda]", "--force-reinstall onnxruntime>=1.32"],
    ["{}[cuda]", "--force-reinstall onnxruntime-gpu<1.32"],
]
EXTRAS = {
    "openvino": ("openvino:", PLUGIN_ORDERS),
    "webgpu": ("webgpu", PLUGIN_ORDERS),
    "tensorrt-rtx": ("tensorrt-rtx", PLUGIN_ORDERS[:1]),
    "cuda": ("cuda", CUDA_ORDERS),
}
MISSING = ("is not installed", "has no")  # in a reason: there is no provider


def run(*words: str | Path) -> str:
    """Run a program and return what it prints."""
    line = [os.fspath(word) for word in words]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: {done.stderr[-2000:]}")
    return done.stdout


def make_wheel(folder: Path) -> Path:
    """Build Intaglio's wheel with the tools of this environment."""
    flags = ["--no-deps", "--no-build-isolation", "-q", "-w", folder, ROOT]
    run(sys.executable, "-m", "pip", "wheel", *flags)
    return next(folder.glob("intaglio-*.whl"))


def try_order(wheel: Path, extra: str, order: list[str], folder: Path) -> list[dict[str, str]]:
    """Return the state of all devices after pip has installed `order` into a fresh environment."""
    venv.create(folder, with_pip=True, clear=True)
    for step in order:
        *flags, what = step.replace("EXTRA", extra).format(wheel).split()
        flags += ["--no-deps"] if flags else []
        run(folder / "bin/pip", "install", "-q", "--disable-pip-version-check", *flags, what)
    installed = run(folder / "bin/pip", "list", "--format=freeze", "--disable-pip-version-check")
    if "telemetry" in installed:
        raise SystemExit(f"{extra} installs a package that reports to somebody: {installed}")
    devices: list[dict[str, str]] = json.loads(run(folder / "bin/intaglio", "devices", "--json"))
    return devices


def main(extras: list[str]) -> None:
    failed = False
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as work:
        wheel = make_wheel(Path(work))
        for extra in extras or EXTRAS:
            start, orders = EXTRAS[extra]
            for order in orders:
                devices = try_order(wheel, extra, order, Path(work) / "environment")
                own = [device for device in devices if device["device"].startswith(start)]
                lost = any(word in device["reason"] for device in own for word in MISSING)
                failed |= lost
                steps = ", then ".join(order).replace("EXTRA", extra).replace("{}", "intaglio")
                state = own[0]["reason"] or own[0]["runtime"]
                print(f"{'LOST' if lost else 'ok':5}{steps}: {state}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])
