"""The TensorRT engines of a bundle, and the library that runs them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from intaglio import _core

ENGINE_FILES = "engines/*/engine.json"  # in a bundle
RUNTIME_PACKAGE = "tensorrt_rtx_libs"


@dataclass(frozen=True)
class Engines:
    """One folder in engines/: a backend's plans, and what its engine.json says of them."""

    folder: Path
    backend: str
    version: str
    targets: list[str]
    precision: str
    sha256: dict[Path, str]  # of its files

    def __str__(self) -> str:
        targets = ", ".join(self.targets)
        return f"{self.backend} {self.version} for {targets}, {self.precision}"


def engines_of(bundle: Path) -> list[Engines]:
    """Every folder of engines in `bundle`, sorted.

    Raises:
        InputError: an engine.json that cannot be read, or a plan that is missing or cut short.
    """
    return [_read(path) for path in sorted(bundle.glob(ENGINE_FILES))]


def _read(path: Path) -> Engines:
    try:
        content = path.read_bytes()
        report: dict[str, Any] = json.loads(content)
        components = report["components"].values()
        plans = {path.parent / Path(c["plan"]).name: c["plan_bytes"] for c in components}
        sha256 = {path.parent / Path(c["plan"]).name: c["plan_sha256"] for c in components}
        sha256[path] = hashlib.sha256(content).hexdigest()
        engines = Engines(
            path.parent, report["backend"], report["version"], report["targets"],
            report["precision"], sha256,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise _core.InputError(
            f"cannot read {path}: {why}; build the engines again with `intaglio build`"
        ) from error
    for plan, size in plans.items():
        if not plan.is_file() or plan.stat().st_size != size:
            raise _core.InputError(
                f"{plan} is not the plan of {size} bytes that engine.json speaks of:"
                " build the engines again with `intaglio build`"
            )
    return engines


@dataclass(frozen=True)
class Runtime:
    """TensorRT-RTX's library as a Python package brings it."""

    library: Path
    version: str
    licenses: list[Path]


def tensorrt_rtx_runtime() -> Runtime | None:
    """The installed one."""
    spec = find_spec(RUNTIME_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in Path(folder).glob("libtensorrt_rtx.so.*"):
            package = distribution(packages_distributions()[RUNTIME_PACKAGE][0])
            licenses = [file for file in package.files or () if "license" in str(file).lower()]
            return Runtime(
                library, package.version, [Path(str(file.locate())) for file in licenses]
            )
    return None
