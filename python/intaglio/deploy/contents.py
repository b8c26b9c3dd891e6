"""The files of a deployment, and where each of them comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from intaglio import _core
from intaglio.deploy.libraries import copyright_of, linked
from intaglio.onnxruntime_library import onnxruntime_library

PACKAGE = Path(_core.__file__).parent


@dataclass
class Deployment:
    """What is written to the output.

    Attributes:
        manifest: the content of bundle.json.
        sources: the source of each file, by its path in the output.
        sha256: the hashes in bundle.json, by the same paths.
        left_to_cuda: libraries that ONNX Runtime's GPU providers need and that are not included.
        remarks: sentences for the user.
    """

    manifest: dict[str, Any]
    sources: dict[str, Path] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    left_to_cuda: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @cached_property  # sources of an archive are gone when all is written
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.sources.values())


def collect(bundle: Path, onnxruntime: Path | None, provider: Path | None) -> Deployment:
    """Return everything that `intaglio deploy folder` writes.

    `provider` is the library of an execution provider's plugin, which is taken along.
    """
    deployment = collect_bundle(bundle, "bundle")
    _add_programs(deployment, onnxruntime)
    _add_libraries(deployment)
    if provider:
        _add_plugin(deployment, provider)
    return deployment


def collect_from_archive(bundle: Path, runtime: Path) -> Deployment:
    """Return the same with the programs of an unpacked standalone archive."""
    deployment = collect_bundle(bundle, "bundle")
    for part in ("bin", "lib", "licenses"):
        for path in sorted((runtime / part).rglob("*")):
            if path.is_file():
                deployment.sources[str(path.relative_to(runtime))] = path
    return deployment


def collect_bundle(bundle: Path, folder: str) -> Deployment:
    """Return the files of the bundle, which go to `folder` in the output."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8-sig"))
    deployment = Deployment(manifest)
    deployment.sources[f"{folder}/bundle.json"] = bundle / "bundle.json"
    for name, listed in manifest["files"].items():
        deployment.sources[f"{folder}/{name}"] = bundle / name
        deployment.sha256[f"{folder}/{name}"] = listed["sha256"]
    if any(bundle.glob("engines/*/engine.json")):
        deployment.remarks.append(
            "The bundle's engines were left out, since its manifest does not list them:"
            " copy its folder engines too if the device is to use them"
        )
    return deployment


def _add_programs(deployment: Deployment, onnxruntime: Path | None) -> None:
    sources = deployment.sources
    command = PACKAGE / "bin" / "intaglio"
    if not command.is_file():
        raise _core.UnavailableError(f"{command} is missing: install the intaglio package again")
    sources["bin/intaglio"] = command
    for library in sorted((PACKAGE / "lib").glob("libintaglio*.so*")):
        sources[f"lib/{library.name}"] = library
    _add_license(deployment, "intaglio", _distribution_licenses("intaglio"))
    for text in sorted((PACKAGE / "share" / "intaglio" / "licenses").glob("*/*")):
        _add_license(deployment, text.parent.name, [text])  # of what is compiled in

    runtime = onnxruntime or onnxruntime_library()
    if runtime is None or not runtime.is_file():
        raise _core.UnavailableError(
            f"ONNX Runtime's library {runtime or ''} does not exist: pip install onnxruntime, or"
            " give --onnxruntime LIBRARY"
        )
    if b"OrtGetApiBase" not in runtime.read_bytes():
        raise _core.UnavailableError(
            f"{runtime} is not ONNX Runtime's library: give another with --onnxruntime LIBRARY"
        )
    # Intaglio looks for the library under this name.
    sources[f"lib/{runtime.name if '.so' in runtime.name else 'libonnxruntime.so'}"] = runtime
    for provider in sorted(runtime.parent.glob("libonnxruntime_providers_*.so")):
        sources[f"lib/{provider.name}"] = provider
    notices = [runtime.parent.parent / name for name in ("LICENSE", "ThirdPartyNotices.txt")]
    _add_license(deployment, "onnxruntime", notices)


def _add_libraries(deployment: Deployment) -> None:
    """Add all libraries that the programs and libraries so far are linked with."""
    sources = deployment.sources
    programs = {name: path for name, path in sources.items() if name.startswith(("bin/", "lib/"))}
    # Providers are loaded on demand only, and CUDA's libraries that they need take gigabytes.
    optional = {name for name in programs if name.startswith("lib/libonnxruntime_providers_")}
    libraries = linked(path for name, path in programs.items() if name not in optional)
    for name, path in sorted(libraries.found.items()):
        if sources.setdefault(f"lib/{name}", path) == path:
            _add_license(deployment, name, [copyright_of(path)])
    if libraries.missing:
        raise _core.UnavailableError(
            f"the folder needs {', '.join(libraries.missing)}, which this machine does not have:"
            " install the packages of these libraries"
        )
    needed = linked(programs[name] for name in optional)
    names = sorted({*needed.found, *needed.missing})
    deployment.left_to_cuda = [name for name in names if f"lib/{name}" not in sources]


def _add_plugin(deployment: Deployment, library: Path) -> None:
    """Add the plugin: all libraries of its Python package, or the library alone.

    Intaglio's library looks for both beside itself.
    """
    if not library.is_file() or b"CreateEpFactories" not in library.read_bytes():
        raise _core.UsageError(
            f"--provider-library {library} is not the library of an execution provider's plugin:"
            " give that of a package such as onnxruntime-ep-openvino"
        )
    package = library.absolute().parent
    if not package.name.startswith("onnxruntime_ep_"):
        deployment.sources[f"lib/{library.name}"] = library
        return
    for file in package.rglob("*"):
        if file.is_file() and file.suffix not in {".py", ".pyc", ".txt"}:
            deployment.sources[f"lib/{package.name}/{file.relative_to(package)}"] = file
    notices = [*package.glob("*.txt"), *_distribution_licenses(package.name)]
    _add_license(deployment, package.name, notices)


def _add_license(deployment: Deployment, name: str, files: list[Path | None] | list[Path]) -> None:
    for file in files:
        if file is not None and file.is_file():
            deployment.sources[f"licenses/{name}/{file.name}"] = file


def _distribution_licenses(name: str) -> list[Path]:
    try:
        files = distribution(name).files or ()
    except PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if "licenses" in file.parts]
