"""Build the engines of a bundle one after the other, and reuse those that exist."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import filelock

from intaglio_export.bundle.output_folder import MANIFEST, check_space
from intaglio_export.engines import context_model, engine_file
from intaglio_export.engines.bundle import Component, check_contents, components, read_manifest
from intaglio_export.engines.checks import check_engine, check_residual, remarks
from intaglio_export.engines.estimate import activation_estimate
from intaglio_export.engines.key import EngineSettings, component_key
from intaglio_export.engines.network import WEIGHT_STREAMING, BuildSpec
from intaglio_export.engines.packages import (
    Package,
    open_package,
    parse_targets,
    targets_with,
)
from intaglio_export.engines.profiles import input_shapes, parse_profiles
from intaglio_export.engines.residual import block_sums, op_layer, residual_types
from intaglio_export.engines.worker import build_apart
from intaglio_export.errors import ExitCode, ExportError, usage_error
from intaglio_export.options import QDQ

PRECISIONS = ("float32", "float16", "bfloat16")
# The size of a plan without its weights, measured: 0.5 MB for 39 nodes, and 15 MB for 722 nodes.
_PLAN_BYTES, _NODE_BYTES = 600_000, 20_500


@dataclass(frozen=True)
class BuildRequest:
    """What to build. The fields are the flags of the same names; None means "not given"."""

    bundle: Path
    backend: str
    arch: str | None = None
    precision: str | None = None
    profiles: tuple[str, ...] = ()
    low_memory: bool = False


@dataclass(frozen=True)
class BuildTask:
    """A component and its key. `entry` is its part of engine.json if its engine exists."""

    component: Component
    key: str
    entry: dict[str, Any] | None


@dataclass(frozen=True)
class BuildPlan:
    """The engines of a bundle, which of them exist, and which have just been built."""

    manifest: dict[str, Any]
    package: Package
    settings: EngineSettings
    folder: Path
    tasks: list[BuildTask]
    built: frozenset[str] = frozenset()

    @property
    def missing(self) -> list[BuildTask]:
        """The tasks whose engine does not exist."""
        return [task for task in self.tasks if task.entry is None]


class Watcher(Protocol):
    """Callbacks for the progress of a build."""

    def start(self, component: Component) -> None:
        """The build of a component starts."""

    def update(self, what: str, done: float) -> None:
        """The builder does `what`, and the share `done` of the component is done."""

    def finish(self) -> None:
        """The build of the component has ended."""


def plan_build(request: BuildRequest) -> BuildPlan:
    """Find out which engines `request` needs and which of them exist, without writing anything.

    Raises:
        ExportError: a flag, the bundle or the package does not allow the build.
    """
    if request.precision:
        _check_precision(request.precision)
    targets = parse_targets(request.backend, request.arch) if request.arch is not None else None
    manifest = read_manifest(request.bundle)
    scheme = manifest["transformer"].get("quantized", {}).get("scheme")
    if scheme and scheme not in QDQ:
        raise ExportError(
            f"The transformer of {request.bundle} has {scheme} weights for ONNX Runtime; for"
            f" engines export again without --quantize, or with --quantize {' or '.join(QDQ)}."
        )
    if request.precision not in (None, manifest["dtype"]):
        raise usage_error(
            f"--precision {request.precision}: {request.bundle} is {manifest['dtype']}, and an"
            f" engine has the types of its graph; export again with --dtype {request.precision}."
        )
    profiles = parse_profiles(request.profiles, manifest)
    package = open_package(request.backend)
    settings = EngineSettings(
        request.backend,
        package.version,
        targets_with(scheme, targets, request.backend, request.bundle),
        manifest["dtype"],
        profiles,
        (WEIGHT_STREAMING,) if request.low_memory else (),
    )
    folder = settings.folder(request.bundle)
    known = engine_file.read(folder)
    tasks = [
        _task(component, component_key(settings, component, manifest), folder, known)
        for component in components(request.bundle, manifest)
    ]
    plan = BuildPlan(manifest, package, settings, folder, tasks)
    for task in plan.missing:
        _sums(task.component, manifest)
    return plan


def _check_precision(precision: str) -> None:
    if precision in PRECISIONS:
        return
    if precision.startswith(("fp8", "float8", "int8", "fp4", "float4", "int4", "nvfp4")):
        raise usage_error(
            f"--precision {precision}: an engine has the types of its graph; export again with"
            f" --quantize {' or '.join(QDQ)}, and give one of {', '.join(PRECISIONS)} here."
        )
    raise usage_error(f"--precision {precision} is not one of {', '.join(PRECISIONS)}.")


def _task(component: Component, key: str, folder: Path, known: dict[str, Any]) -> BuildTask:
    entry = known.get(component.path)
    if entry is None or entry["key"] != key:
        return BuildTask(component, key, None)
    # Only the size is checked, because reading gigabytes would take longer than most builds.
    plan = folder / entry["plan"]
    there = plan.is_file() and plan.stat().st_size == entry["plan_bytes"]
    there = there and (folder / entry.get("context_model", entry["plan"])).is_file()
    return BuildTask(component, key, entry if there else None)


def build_engines(request: BuildRequest, watcher: Watcher) -> BuildPlan:
    """Build the missing engines of `request`. Every task of the result has an entry.

    Each engine is stored as soon as it is built, so finished engines survive an interruption.

    Raises:
        ExportError: a flag, the bundle, the package or the machine does not allow the build.
    """
    plan = plan_build(request)  # finds bad input before a folder is created
    if not plan.missing:  # nothing is written, because the bundle may be read-only
        return plan
    with _locked(request.bundle / "engines"):
        plan = plan_build(request)  # another process may have built some
        built = frozenset(task.component.path for task in plan.missing)
        entries = _build_missing(plan, request.bundle, watcher)
        tasks = [replace(task, entry=entries[task.component.path]) for task in plan.tasks]
        return replace(plan, tasks=tasks, built=built)


def _build_missing(plan: BuildPlan, bundle: Path, watcher: Watcher) -> dict[str, dict[str, Any]]:
    """Build the missing engines. Returns the components of engine.json."""
    check_space(
        plan.folder,
        sum(plan_bytes(plan, task.component) for task in plan.missing),
        "the engines need",
        "; free some space or move the bundle",
    )
    entries = {task.component.path: task.entry for task in plan.tasks if task.entry is not None}
    for path in sorted({path for task in plan.missing for path in task.component.files}):
        check_contents(bundle, plan.manifest, path)
    for task in plan.missing:
        watcher.start(task.component)
        entries[task.component.path] = _build(plan, task, watcher)
        paths = (task.component.path for task in plan.tasks)
        in_order = {path: entries[path] for path in paths if path in entries}
        engine_file.write(plan.folder, plan.settings, in_order)
        _remove_unnamed(plan.folder, in_order)
        watcher.finish()
    return entries


def plan_bytes(plan: BuildPlan, component: Component) -> int:
    """Estimate the size of an engine on disk; it holds kernels for each profile."""
    kernels = _PLAN_BYTES + _NODE_BYTES * len(component.graph.graph.node)
    return component.weights_bytes + kernels * len(plan.settings.profiles)


def _build(plan: BuildPlan, task: BuildTask, watcher: Watcher) -> dict[str, Any]:
    """Build one component and store its plan. Returns its part of engine.json."""
    component = task.component
    sums = _sums(component, plan.manifest)
    spec = _spec(plan, component, sums)
    plan.folder.mkdir(exist_ok=True)
    plan_file = plan.folder / engine_file.plan_name(component, task.key)
    unfinished = plan_file.with_suffix(".partial")
    began = time.monotonic()
    try:
        built = build_apart(spec, unfinished, watcher.update)
        log = built.log
        check_engine(component, spec, built.bindings)
        channels = plan.manifest["transformer"]["channels"]
        residual = residual_types(sums, log.layers, channels) if log.layers else []
        check_residual(component, residual)
        guess = estimates(plan, task)
        entry = engine_file.entry(task.key, component, plan.manifest, built, guess)
        unfinished.replace(plan_file)
    finally:
        unfinished.unlink(missing_ok=True)
        if not any(plan.folder.iterdir()):
            plan.folder.rmdir()
    if plan.settings.backend == "tensorrt-rtx":
        entry["context_model"] = context_model.write(
            component, plan.settings, plan_file, built.header
        )
    if residual:
        entry["residual"] = residual
    if log.layers and (op := op_layer(component.graph, log.layers, len(spec.profiles))):
        entry["ma_suppress"] = op
    if said := remarks(component, log):
        entry["remarks"] = said
    entry["seconds"] = round(time.monotonic() - began, 3)
    return entry


def estimates(plan: BuildPlan, task: BuildTask) -> list[int]:
    """Estimate the activation memory of an engine for each profile."""
    spec = _spec(plan, task.component, [])
    graph = task.component.graph
    return [
        activation_estimate(graph, {name: largest for name, (_, _, largest) in shapes.items()})
        for shapes in spec.profiles
    ]


def _sums(component: Component, manifest: dict[str, Any]) -> list[list[str]]:
    if not component.is_transformer:
        return []
    blocks = manifest["transformer"]["blocks"]
    sums = block_sums(component.graph, blocks)
    if not sums:
        raise ExportError(
            f"The image stream of {component.folder / component.path} cannot be followed through"
            f" the {blocks} blocks of {MANIFEST}, so it cannot be checked that the stream stays"
            " float32; export again."
        )
    return sums


def _spec(plan: BuildPlan, component: Component, sums: Sequence[Sequence[str]]) -> BuildSpec:
    settings = plan.settings
    return BuildSpec(
        settings.backend,
        component.folder / component.path,
        settings.targets,
        settings.flags,
        tuple(input_shapes(component, profile, plan.manifest) for profile in settings.profiles),
        tuple(name for names in sums for name in names),
        plan.folder.parent / f"{'-'.join((settings.backend, settings.version, *settings.targets))}"
        ".timing_cache",
    )


@contextmanager
def _locked(engines: Path) -> Iterator[None]:
    """Lock `engines` against other builders.

    Raises:
        ExportError: another builder holds the lock, or the folder is not writable.
    """
    lock = filelock.FileLock(engines / ".lock", blocking=False)
    try:
        engines.mkdir(exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise ExportError(
            f"Another intaglio build is running in {engines}; wait until it has ended.",
            ExitCode.UNAVAILABLE,
        ) from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ExportError(
            f"The engines cannot be written to {engines} ({error.strerror}); copy the bundle to"
            " where it can be written, and build there."
        ) from error
    try:
        _clear_up(engines)
        yield
    finally:
        lock.release()


def _clear_up(engines: Path) -> None:
    """Remove unfinished files of a builder that was killed."""
    for left in engines.rglob("*.partial"):
        left.unlink()
    for folder in filter(Path.is_dir, engines.iterdir()):
        entries = engine_file.read(folder)
        if (
            entries or not (folder / engine_file.NAME).exists()
        ):  # otherwise the file is of another version
            _remove_unnamed(folder, entries)
        if not any(folder.iterdir()):
            folder.rmdir()


def _remove_unnamed(folder: Path, entries: dict[str, Any]) -> None:
    """Remove plans that no entry names: those of earlier graphs or of another layout."""
    named = {entry.get(file) for entry in entries.values() for file in ("plan", "context_model")}
    for path in (*folder.glob("*.plan"), *folder.glob("*.onnx")):
        if path.name not in named:
            path.unlink()
