"""The packages TensorRT-RTX and TensorRT, which have one API and different targets."""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio_export.errors import ExitCode, ExportError, usage_error

# Compute capabilities that TensorRT-RTX builds for on any machine.
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
# Turing is left out, because TensorRT-RTX has no float32 matmul there, and AdaLN's matmuls are
# float32 in every bundle. The other targets cost nothing: one plan holds them all.
DEFAULT_TARGETS = RTX_TARGETS[1:]
# The first compute capability that multiplies the numbers of a quantised bundle.
_FIRST = {"int8-qdq": 80, "fp8": 89, "fp4": 120}
BACKENDS = ("tensorrt-rtx", "tensorrt")
_MODULES = {"tensorrt-rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}
_INSTALL = {"tensorrt-rtx": '"intaglio[tensorrt-rtx]"', "tensorrt": "tensorrt"}
_TITLES = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class Package:
    """An imported package. `module` is its Python API."""

    backend: str
    module: Any
    version: str

    @property
    def title(self) -> str:
        """The name and version for messages."""
        return f"{_TITLES[self.backend]} {self.version}"

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for named targets and not for the GPU in the machine."""
        return self.backend == "tensorrt-rtx"

    @property
    def timing_cache(self) -> bool:
        """Whether it times kernels while it builds, which TensorRT-RTX does later on the device."""
        return self.backend == "tensorrt"


def open_package(backend: str) -> Package:
    """Import the package of `backend`.

    Raises:
        ExportError: the package is not installed, or its libraries cannot be loaded.
    """
    try:
        module = importlib.import_module(_MODULES[backend])
    except ModuleNotFoundError as error:
        raise ExportError(
            f"--backend {backend} needs the Python package {error.name}:"
            f" pip install {_INSTALL[backend]}",
            ExitCode.UNAVAILABLE,
        ) from error
    except (ImportError, OSError) as error:
        raise ExportError(
            f"--backend {backend}: its package is installed but cannot be loaded: {error}.",
            ExitCode.UNAVAILABLE,
        ) from error
    package = Package(backend, module, module.__version__)
    if not hasattr(module, "IAttentionInputLayer"):
        raise ExportError(
            f"{package.title} is too old: it has no attention layer; install 10.14 or newer.",
            ExitCode.UNAVAILABLE,
        )
    return package


def parse_targets(backend: str, text: str | None) -> tuple[str, ...]:
    """Read --arch, as in `sm89,sm120`. The result has the order of `RTX_TARGETS`.

    Raises:
        ExportError: the package cannot build for one of them.
    """
    if backend == "tensorrt":
        if text is not None:
            raise usage_error(
                f"--arch {text}: TensorRT builds only for the GPU in the machine; leave --arch out,"
                " or give --backend tensorrt-rtx."
            )
        return (gpu_target(),)
    if text is None:
        return DEFAULT_TARGETS
    named = [part.strip() for part in text.split(",")]
    for target in named:
        if target not in RTX_TARGETS:
            raise usage_error(_no_target(text, target))
    return tuple(target for target in RTX_TARGETS if target in named)


def targets_with(
    scheme: str | None, targets: Sequence[str] | None, backend: str, bundle: Path
) -> tuple[str, ...]:
    """Return `targets`, or by default all of `backend` that multiply what `scheme` quantises to.

    Raises:
        ExportError: a target has no such products.
    """
    first = _FIRST.get(scheme or "", 0)
    able = [target for target in DEFAULT_TARGETS if int(target[2:]) >= first]
    if targets is None and backend == "tensorrt-rtx":
        return tuple(able)
    found = tuple(targets or parse_targets(backend, None))
    for target in found:
        if int(target[2:]) < first:
            raise usage_error(
                f"{target} has no {scheme} products, which {bundle} needs: build for some of"
                f" {', '.join(able)}, or export again without --quantize {scheme}."
            )
    return found


def _no_target(text: str, target: str) -> str:
    known = f"TensorRT-RTX builds for {', '.join(RTX_TARGETS)}"
    if re.fullmatch("sm(90|100|103|110)a?", target):
        return (
            f"--arch {text}: {target} is Hopper or data-centre Blackwell, which needs"
            f" --backend tensorrt on a machine with that GPU; {known}."
        )
    if (meant := target.lower().replace("_", "")) in RTX_TARGETS:
        return f"--arch {text}: {target} is not a target; it is spelled {meant}."
    return f"--arch {text or '(empty)'}: {target or '(empty)'} is not a target; {known}."


_MAJOR, _MINOR = 75, 76  # CUdevice_attribute COMPUTE_CAPABILITY_MAJOR and _MINOR


def gpu_target() -> str:
    """Ask the CUDA driver for the compute capability of the first GPU, as in sm90.

    Raises:
        ExportError: there is no driver or no GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise _no_gpu("has no NVIDIA driver (libcuda.so.1)") from error
    device, numbers = ctypes.c_int(), []
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        raise _no_gpu("has a driver but no GPU that it can use")
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        numbers.append(number.value)
    return "sm{}{}".format(*numbers)


def _no_gpu(why: str) -> ExportError:
    return ExportError(
        f"--backend tensorrt builds for the GPU in the machine, and this one {why}; build there, or"
        " give --backend tensorrt-rtx, which needs none.",
        ExitCode.UNAVAILABLE,
    )


def capabilities(package: Package, targets: Sequence[str]) -> list[Any]:
    """Return `targets` as values of the package's API."""
    return [getattr(package.module.ComputeCapability, target.upper()) for target in targets]
