"""All engines of a bundle: what is there is used again, the rest is built, one after the other."""

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
from intaglio_export.engines import engine_file
from intaglio_export.engines.bundle import Component, check_contents, components, read_manifest
from intaglio_export.engines.checks import check_engine, check_residual
from intaglio_export.engines.estimate import activation_estimate
from intaglio_export.engines.key import EngineSettings, component_key
from intaglio_export.engines.network import WEIGHT_STREAMING, BuildSpec
from intaglio_export.engines.packages import Package, open_package, parse_targets
from intaglio_export.engines.profiles import input_shapes, parse_profiles
from intaglio_export.engines.residual import block_sums, op_layer, residual_types
from intaglio_export.engines.worker import build_apart
from intaglio_export.errors import ExitCode, ExportError, usage_error

PRECISIONS = ("float32", "float16", "bfloat16")
# What a plan has beside its weights: as measured, at least 1 MB, and 11 MB for 761 nodes.
_PLAN_BYTES, _NODE_BYTES = 1_000_000, 15_000


@dataclass(frozen=True)
class BuildRequest:
    """What to build, as the flags of the same names say it; None is "not said"."""

    bundle: Path
    backend: str
    arch: str | None = None
    precision: str | None = None
    profiles: tuple[str, ...] = ()
    low_memory: bool = False


@dataclass(frozen=True)
class BuildTask:
    """A component and its key; `entry` is its part of engine.json if its engine is there."""

    component: Component
    key: str
    entry: dict[str, Any] | None


@dataclass(frozen=True)
class BuildPlan:
    """What there is to do, and the graphs whose engines have just been built."""

    manifest: dict[str, Any]
    package: Package
    settings: EngineSettings
    folder: Path
    tasks: list[BuildTask]
    built: frozenset[str] = frozenset()

    @property
    def missing(self) -> list[BuildTask]:
        """Those whose engine is not there."""
        return [task for task in self.tasks if task.entry is None]


class Watcher(Protocol):
    """Is told how the build goes."""

    def start(self, component: Component) -> None:
        """A component's turn has come."""

    def update(self, what: str, done: float) -> None:
        """What the builder does, and the share of it that is done."""

    def finish(self) -> None:
        """The component is built."""


def plan_build(request: BuildRequest) -> BuildPlan:
    """What `request` asks for, and which engines of it are there; writes nothing.

    Raises:
        ExportError: a flag, the bundle or the package does not allow it.
    """
    if request.precision:
        _check_precision(request.precision)
    targets = parse_targets(request.backend, request.arch) if request.arch else None
    manifest = read_manifest(request.bundle)
    if quantized := manifest["transformer"].get("quantized"):
        raise ExportError(
            f"The transformer of {request.bundle} has {quantized['scheme']} weights for ONNX"
            " Runtime, and engines are built of float weights; export again without --quantize."
        )
    if request.precision not in (None, manifest["dtype"]):
        raise usage_error(
            f"--precision {request.precision}: {request.bundle} is {manifest['dtype']}, and an"
            f" engine is what its graph is; export again with --dtype {request.precision}."
        )
    profiles = parse_profiles(request.profiles, manifest)
    package = open_package(request.backend)
    settings = EngineSettings(
        request.backend,
        package.version,
        targets or parse_targets(request.backend, request.arch),
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
            f"--precision {precision} needs a calibration that keeps the massive channels out of"
            f" the quantised range, and there is none; give one of {', '.join(PRECISIONS)}."
        )
    raise usage_error(f"--precision {precision} is not one of {', '.join(PRECISIONS)}.")


def _task(component: Component, key: str, folder: Path, known: dict[str, Any]) -> BuildTask:
    entry = known.get(component.path)
    if entry is None or entry["key"] != key:
        return BuildTask(component, key, None)
    # Its size only: to read gigabytes before every build would take longer than most builds do.
    plan = folder / entry["plan"]
    there = plan.is_file() and plan.stat().st_size == entry["plan_bytes"]
    return BuildTask(component, key, entry if there else None)


def build_engines(request: BuildRequest, watcher: Watcher) -> BuildPlan:
    """Build the engines of `request` that are not there; every job of the result has its entry.

    An engine is in place as soon as it is built: after an interruption those before it remain.

    Raises:
        ExportError: a flag, the bundle, the package or the machine does not allow it.
    """
    plan = plan_build(request)  # bad input is found before a folder is made
    if not plan.missing:  # then nothing is written: the bundle may be read-only
        return plan
    with _locked(request.bundle / "engines"):
        plan = plan_build(request)  # whoever had the lock may have built some
        built = frozenset(task.component.path for task in plan.missing)
        entries = _build_missing(plan, request.bundle, watcher)
        tasks = [replace(task, entry=entries[task.component.path]) for task in plan.tasks]
        return replace(plan, tasks=tasks, built=built)


def _build_missing(plan: BuildPlan, bundle: Path, watcher: Watcher) -> dict[str, dict[str, Any]]:
    """Build what is missing. Returns the components of engine.json."""
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
    """About what an engine takes on the disk; kernels are there for each profile."""
    kernels = _PLAN_BYTES + _NODE_BYTES * len(component.graph.graph.node)
    return component.weights_bytes + kernels * len(plan.settings.profiles)


def _build(plan: BuildPlan, task: BuildTask, watcher: Watcher) -> dict[str, Any]:
    """Build one component and put its plan in place. Returns its part of engine.json."""
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
        check_engine(component, spec, log)
        channels = plan.manifest["transformer"]["channels"]
        residual = residual_types(sums, log.layers, channels)
        check_residual(component, residual)
        entry = engine_file.entry(task.key, component, plan.manifest, built)
        unfinished.replace(plan_file)
    finally:
        unfinished.unlink(missing_ok=True)
        if not any(plan.folder.iterdir()):
            plan.folder.rmdir()
    if residual:
        entry["residual"] = residual
    if op := op_layer(component.graph, log.layers, len(spec.profiles)):
        entry["ma_suppress"] = op
    entry["seconds"] = round(time.monotonic() - began, 3)
    return entry


def estimates(plan: BuildPlan, task: BuildTask) -> list[int]:
    """Activation memory of a job's engine, one per profile (`activation_estimate`)."""
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
            f" the {blocks} blocks that {MANIFEST} speaks of, so that nobody would see whether it"
            " stays float32; export again."
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
    """Keep other builders out of `engines`.

    Raises:
        ExportError: one is at work, or nothing can be written there.
    """
    lock = filelock.FileLock(engines / ".lock", blocking=False)
    try:
        engines.mkdir(exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise ExportError(
            f"Another intaglio build is at work in {engines}; wait until it has ended.",
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
    """Remove what a builder that was killed has left half done."""
    for left in engines.rglob("*.partial"):
        left.unlink()
    for folder in filter(Path.is_dir, engines.iterdir()):
        entries = engine_file.read(folder)
        if entries or not (folder / engine_file.NAME).exists():  # else another version's
            _remove_unnamed(folder, entries)
        if not any(folder.iterdir()):
            folder.rmdir()


def _remove_unnamed(folder: Path, entries: dict[str, Any]) -> None:
    """Remove plans that are no engine's any more: of graphs as they were, or of another layout."""
    named = {entry["plan"] for entry in entries.values()}
    for plan in folder.glob("*.plan"):
        if plan.name not in named:
            plan.unlink()
