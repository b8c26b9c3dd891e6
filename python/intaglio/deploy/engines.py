"""The TensorRT engines of a bundle, and the library that runs them."""

from __future__ import annotations

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
    plans: list[Path]

    @property
    def files(self) -> list[Path]:
        return [self.folder / "engine.json", *self.plans]

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
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        plans = {
            path.parent / Path(component["plan"]).name: component["plan_bytes"]
            for component in report["components"].values()
        }
        engines = Engines(
            path.parent, report["backend"], report["version"], report["targets"],
            report["precision"], list(plans),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _core.InputError(
            f"cannot read {path}: {error!r}; build the engines again with `intaglio build`"
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
