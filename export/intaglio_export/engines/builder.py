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

from intaglio_export.engines import engine_file
from intaglio_export.engines.bundle import Component, check_contents, components, read_manifest
from intaglio_export.engines.checks import check_engine, check_residual
from intaglio_export.engines.estimate import activation_estimate
from intaglio_export.engines.key import Settings, component_key
from intaglio_export.engines.network import WEIGHT_STREAMING, Order
from intaglio_export.engines.packages import Package, open_package, parse_targets
from intaglio_export.engines.profiles import input_shapes, parse_profiles
from intaglio_export.engines.residual import block_sums, op_layer, residual_types
from intaglio_export.engines.worker import build_apart
from intaglio_export.errors import ExitCode, ExportError, usage_error
from intaglio_export.folder import MANIFEST, check_space

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
class Job:
    """A component and its key; `entry` is its part of engine.json if its engine is there."""

    component: Component
    key: str
    entry: dict[str, Any] | None


@dataclass(frozen=True)
class Work:
    """What there is to do, and the graphs whose engines have just been built."""

    manifest: dict[str, Any]
    package: Package
    settings: Settings
    folder: Path
    jobs: list[Job]
    built: frozenset[str] = frozenset()

    @property
    def missing(self) -> list[Job]:
        """Those whose engine is not there."""
        return [job for job in self.jobs if job.entry is None]


class Watcher(Protocol):
    """Is told how the build goes."""

    def start(self, component: Component) -> None:
        """A component's turn has come."""

    def update(self, what: str, done: float) -> None:
        """What the builder does, and the share of it that is done."""

    def finish(self) -> None:
        """The component is built."""


def plan_work(request: BuildRequest) -> Work:
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
    settings = Settings(
        request.backend,
        package.version,
        targets or parse_targets(request.backend, request.arch),
        manifest["dtype"],
        profiles,
        (WEIGHT_STREAMING,) if request.low_memory else (),
    )
    folder = settings.folder(request.bundle)
    known = engine_file.read(folder)
    jobs = [
        _job(component, component_key(settings, component, manifest), folder, known)
        for component in components(request.bundle, manifest)
    ]
    work = Work(manifest, package, settings, folder, jobs)
    for job in work.missing:
        _sums(job.component, manifest)
    return work


def _check_precision(precision: str) -> None:
    if precision in PRECISIONS:
        return
    if precision.startswith(("fp8", "float8", "int8", "fp4", "float4", "int4", "nvfp4")):
        raise usage_error(
            f"--precision {precision} needs a calibration that keeps the massive channels out of"
            f" the quantised range, and there is none; give one of {', '.join(PRECISIONS)}."
        )
    raise usage_error(f"--precision {precision} is not one of {', '.join(PRECISIONS)}.")


def _job(component: Component, key: str, folder: Path, known: dict[str, Any]) -> Job:
    entry = known.get(component.path)
    if entry is None or entry["key"] != key:
        return Job(component, key, None)
    # Its size only: to read gigabytes before every build would take longer than most builds do.
    plan = folder / entry["plan"]
    there = plan.is_file() and plan.stat().st_size == entry["plan_bytes"]
    return Job(component, key, entry if there else None)


def build_engines(request: BuildRequest, watcher: Watcher) -> Work:
    """Build the engines of `request` that are not there; every job of the result has its entry.

    An engine is in place as soon as it is built: after an interruption those before it remain.

    Raises:
        ExportError: a flag, the bundle, the package or the machine does not allow it.
    """
    work = plan_work(request)  # bad input is found before a folder is made
    if not work.missing:  # then nothing is written: the bundle may be read-only
        return work
    with _locked(request.bundle / "engines"):
        work = plan_work(request)  # whoever had the lock may have built some
        built = frozenset(job.component.path for job in work.missing)
        entries = _build_missing(work, request.bundle, watcher)
        jobs = [replace(job, entry=entries[job.component.path]) for job in work.jobs]
        return replace(work, jobs=jobs, built=built)


def _build_missing(work: Work, bundle: Path, watcher: Watcher) -> dict[str, dict[str, Any]]:
    """Build what is missing. Returns the components of engine.json."""
    check_space(
        work.folder,
        sum(plan_bytes(work, job.component) for job in work.missing),
        "the engines need",
        "; free some space or move the bundle",
    )
    entries = {job.component.path: job.entry for job in work.jobs if job.entry is not None}
    for path in sorted({path for job in work.missing for path in job.component.files}):
        check_contents(bundle, work.manifest, path)
    for job in work.missing:
        watcher.start(job.component)
        entries[job.component.path] = _build(work, job, watcher)
        paths = (job.component.path for job in work.jobs)
        in_order = {path: entries[path] for path in paths if path in entries}
        engine_file.write(work.folder, work.settings, in_order)
        _remove_unnamed(work.folder, in_order)
        watcher.finish()
    return entries


def plan_bytes(work: Work, component: Component) -> int:
    """About what an engine takes on the disk; kernels are there for each profile."""
    kernels = _PLAN_BYTES + _NODE_BYTES * len(component.graph.graph.node)
    return component.weights_bytes + kernels * len(work.settings.profiles)


def _build(work: Work, job: Job, watcher: Watcher) -> dict[str, Any]:
    """Build one component and put its plan in place. Returns its part of engine.json."""
    component = job.component
    sums = _sums(component, work.manifest)
    order = _order(work, component, sums)
    work.folder.mkdir(exist_ok=True)
    plan = work.folder / engine_file.plan_name(component, job.key)
    unfinished = plan.with_suffix(".partial")
    began = time.monotonic()
    try:
        built = build_apart(order, unfinished, watcher.update)
        log = built.log
        check_engine(component, order, log)
        channels = work.manifest["transformer"]["channels"]
        residual = residual_types(sums, log.layers, channels)
        check_residual(component, residual)
        entry = engine_file.entry(job.key, component, work.manifest, built)
        unfinished.replace(plan)
    finally:
        unfinished.unlink(missing_ok=True)
        if not any(work.folder.iterdir()):
            work.folder.rmdir()
    if residual:
        entry["residual"] = residual
    if op := op_layer(component.graph, log.layers, len(order.profiles)):
        entry["ma_suppress"] = op
    entry["seconds"] = round(time.monotonic() - began, 3)
    return entry


def estimates(work: Work, job: Job) -> list[int]:
    """Activation memory of a job's engine, one per profile (`activation_estimate`)."""
    order = _order(work, job.component, [])
    graph = job.component.graph
    return [
        activation_estimate(graph, {name: largest for name, (_, _, largest) in shapes.items()})
        for shapes in order.profiles
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


def _order(work: Work, component: Component, sums: Sequence[Sequence[str]]) -> Order:
    settings = work.settings
    return Order(
        settings.backend,
        component.folder / component.path,
        settings.targets,
        settings.flags,
        tuple(input_shapes(component, profile, work.manifest) for profile in settings.profiles),
        tuple(name for names in sums for name in names),
        work.folder.parent / f"{'-'.join((settings.backend, settings.version, *settings.targets))}"
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
