"""One relocatable folder: bundle, engines, command and libraries."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from intaglio import _core
from intaglio.deploy.engines import (
    ENGINE_FILES,
    Engines,
    Runtime,
    engines_of,
    tensorrt_rtx_runtime,
)
from intaglio.deploy.libraries import copyright_of, linked, package_copyright
from intaglio.deploy.texts import readme, smoke_test
from intaglio.onnxruntime_library import onnxruntime_library

PACKAGE = Path(_core.__file__).parent
# Called with the bytes copied so far and in all.
Progress = Callable[[int, int], None]


@dataclass
class Deployment:
    """What goes into the folder.

    Attributes:
        sources: where each file comes from, by its path in the folder.
        sha256: what bundle.json and engine.json say of their files, by the same path.
        engines: those of the bundle's that it can run.
        left_to_cuda: libraries that ONNX Runtime's providers for GPUs ask for.
        remarks: what the caller should know.
    """

    manifest: dict[str, Any]
    sources: dict[str, Path] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    engines: list[Engines] = field(default_factory=list)
    left_to_cuda: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.sources.values())


def write_folder(
    bundle: Path, output: Path, onnxruntime: Path | None, progress: Progress
) -> Deployment:
    """Write the folder `output`; it appears whole or not at all.

    Raises:
        InputError: the bundle, or an output that may not be written.
        UnavailableError: Intaglio's command or ONNX Runtime's library is not there.
    """
    check_output(output, bundle)
    _core.Bundle.open(bundle)
    deployment = collect(bundle, onnxruntime)
    with placing(output, deployment.bytes) as work:
        done, total = 0, deployment.bytes
        for name, source in deployment.sources.items():
            for count in copy(source, work / name, deployment.sha256.get(name)):
                done += count
                progress(done, total)
        (work / "README.md").write_text(readme(deployment, work), encoding="utf-8")
        script = work / "smoke_test.sh"
        script.write_text(smoke_test(deployment.manifest), encoding="utf-8")
        script.chmod(0o755)
    return deployment


def collect(bundle: Path, onnxruntime: Path | None) -> Deployment:
    """Find everything that the folder holds."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    deployment = Deployment(manifest)
    sources = deployment.sources
    sources["bundle/bundle.json"] = bundle / "bundle.json"
    for name, listed in manifest["files"].items():
        sources[f"bundle/{name}"] = bundle / name
        deployment.sha256[f"bundle/{name}"] = listed["sha256"]
    _add_engines(deployment, bundle)
    _add_programs(deployment, onnxruntime)
    _add_libraries(deployment)
    return deployment


def _add_engines(deployment: Deployment, bundle: Path) -> None:
    if not _core.built_with_tensorrt():
        if any(bundle.glob(ENGINE_FILES)):
            deployment.remarks.append(
                "The bundle's engines were left out, since this build of Intaglio cannot run them:"
                " install one that can, from Intaglio's sources with `pip install ."
                " -C cmake.define.INTAGLIO_TENSORRT=ON`, and deploy again"
            )
        return
    deployment.engines = engines_of(bundle)
    for engines in deployment.engines:
        for file, sha256 in engines.sha256.items():
            deployment.sources[f"bundle/{file.relative_to(bundle)}"] = file
            deployment.sha256[f"bundle/{file.relative_to(bundle)}"] = sha256


def _add_programs(deployment: Deployment, onnxruntime: Path | None) -> None:
    sources = deployment.sources
    command = PACKAGE / "bin" / "intaglio"
    if not command.is_file():
        raise _core.UnavailableError(f"{command} is missing: install the intaglio package again")
    sources["bin/intaglio"] = command
    for library in sorted((PACKAGE / "lib").glob("libintaglio*.so*")):
        sources[f"lib/{library.name}"] = library
    _add_license(deployment, "intaglio", _distribution_licenses("intaglio"))
    # Compiled into libintaglio.
    for package in ("libcli11-dev", "nlohmann-json3-dev"):
        _add_license(deployment, package, [package_copyright(package)])

    runtime = onnxruntime or onnxruntime_library()
    if runtime is None or not runtime.is_file():
        raise _core.UnavailableError(
            f"ONNX Runtime's library {runtime or ''} is not there: pip install onnxruntime, or give"
            " --onnxruntime LIBRARY"
        )
    if b"OrtGetApiBase" not in runtime.read_bytes():
        raise _core.UnavailableError(
            f"{runtime} is not ONNX Runtime's library: give another with --onnxruntime LIBRARY"
        )
    # Under the name that Intaglio looks for, whatever it is called here.
    sources[f"lib/{runtime.name if '.so' in runtime.name else 'libonnxruntime.so'}"] = runtime
    for provider in sorted(runtime.parent.glob("libonnxruntime_providers_*.so")):
        sources[f"lib/{provider.name}"] = provider
    notices = [runtime.parent.parent / name for name in ("LICENSE", "ThirdPartyNotices.txt")]
    _add_license(deployment, "onnxruntime", notices)
    if any(engines.backend == "tensorrt-rtx" for engines in deployment.engines):
        _add_tensorrt_rtx(deployment, tensorrt_rtx_runtime())
    for version in sorted({e.version for e in deployment.engines if e.backend == "tensorrt"}):
        deployment.remarks.append(
            f"TensorRT's own library is not put in: install TensorRT {version} where it is to run"
        )


def _add_tensorrt_rtx(deployment: Deployment, runtime: Runtime | None) -> None:
    built = {e.version for e in deployment.engines if e.backend == "tensorrt-rtx"}
    if runtime is None or runtime.version not in built:
        found = f"is version {runtime.version}" if runtime else "is not installed here"
        deployment.remarks.append(
            f"TensorRT-RTX's library was left out: it {found}, and the engines need"
            f" {' or '.join(sorted(built))}; put that version's libtensorrt_rtx.so.1 into lib/"
        )
        return
    deployment.sources[f"lib/{runtime.library.name}"] = runtime.library
    _add_license(deployment, "tensorrt-rtx", runtime.licenses)


def _add_libraries(deployment: Deployment) -> None:
    """Whatever the programs and libraries so far are linked with."""
    sources = deployment.sources
    programs = {name: path for name, path in sources.items() if name.startswith(("bin/", "lib/"))}
    # Loaded only when asked for; what they need is CUDA's, gigabytes of one version.
    optional = {name for name in programs if name.startswith("lib/libonnxruntime_providers_")}
    libraries = linked(path for name, path in programs.items() if name not in optional)
    for name, path in sorted(libraries.found.items()):
        if sources.setdefault(f"lib/{name}", path) == path:
            _add_license(deployment, name, [copyright_of(path)])
    if libraries.missing:
        raise _core.UnavailableError(
            f"{', '.join(libraries.missing)} cannot be found here, which the folder needs: install"
            " what it comes from"
        )
    needed = linked(programs[name] for name in optional)
    names = sorted({*needed.found, *needed.missing})
    deployment.left_to_cuda = [name for name in names if f"lib/{name}" not in sources]


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


def check_output(output: Path, bundle: Path) -> None:
    """See that a folder may be written to `output`.

    Raises:
        UsageError: it would be part of the bundle that it is made from.
        InputError: there is something already, or the folder above is missing or not writable.
    """
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(bundle)):
        raise _core.UsageError(
            f"the output {output} lies in the bundle {bundle}: give a path outside of it with -o"
        )
    if output.is_dir():
        if any(output.iterdir()):
            raise _core.InputError(
                f"the output {output} exists and is not empty: give another path with -o"
            )
    elif output.exists() or output.is_symlink():
        raise _core.InputError(f"the output {output} is not a folder: give another path with -o")
    parent = output.resolve().parent
    if not parent.is_dir():
        raise _core.InputError(f"the folder {parent} for the output does not exist: make it first")
    if not os.access(parent, os.W_OK):
        raise _core.InputError(f"the folder {parent} for the output is not writable")


@contextmanager
def placing(output: Path, needed: int) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place when the block ends without error."""
    output = output.resolve()
    prefix, suffix = f".{output.name}.", ".partial"
    for left in output.parent.glob(f"{glob.escape(prefix)}{'?' * 8}{suffix}"):
        with held(left) as abandoned:  # by a process that was killed
            if abandoned:
                shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise _core.InputError(
            f"the disk of {output.parent} is too full: the folder needs {needed / 1e6:.0f} MB and"
            f" {free / 1e6:.0f} MB are free"
        )
    work = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=output.parent))
    try:
        with held(work):
            work.chmod(0o755)
            yield work
            work.rename(output)  # over an empty folder, too
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Lock a folder for as long as this process lives; whether no other process has it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone by now, or somebody else's
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = True
    except OSError:
        mine = False
    try:
        yield mine
    finally:
        os.close(descriptor)


def copy(source: Path, target: Path, sha256: str | None) -> Iterator[int]:
    """Copy a file; yields the bytes of every piece.

    Raises:
        InputError: what was read has not that SHA-256.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(1 << 20):
            digest.update(piece)
            write.write(piece)
            yield len(piece)
    if sha256 and digest.hexdigest() != sha256:
        raise _core.InputError(
            f"{source} is damaged or changed while it was copied (its SHA-256 differs): make it"
            " again with `intaglio export`, engines with `intaglio build`"
        )
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
