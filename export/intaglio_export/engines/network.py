"""Build a plan from an ONNX graph, with the API that both packages share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio_export.engines.bindings import Binding, Ends, of_engine, of_network
from intaglio_export.engines.log import EngineLog, LogReader
from intaglio_export.engines.packages import Package, capabilities
from intaglio_export.errors import ExitCode, ExportError

# A callback that gets what the builder does and the share that is done.
Progress = Callable[[str, float], None]
WEIGHT_STREAMING = "weight_streaming"
_SOURCE_LINE = re.compile(r"\.? In [\w:()]+ at /\S+")  # a place in the package's source code


@dataclass(frozen=True)
class BuildSpec:
    """What to build: a graph for targets, flags and shapes.

    `profiles` holds the smallest, likeliest and largest shape of each input for each profile.
    The results of `float32_nodes` must be float32.
    """

    backend: str
    graph: Path
    targets: tuple[str, ...]
    flags: tuple[str, ...]
    profiles: tuple[dict[str, Ends], ...]
    float32_nodes: tuple[str, ...]
    timing_cache: Path


@dataclass(frozen=True)
class Engine:
    """A built engine: its plan, the part of the plan that says where it runs, and what it is."""

    plan: memoryview
    header: bytes
    bindings: tuple[Binding, ...]
    log: EngineLog


def build_engine(package: Package, spec: BuildSpec, progress: Progress) -> Engine:
    """Build the engine of `spec`.

    Raises:
        ExportError: the package cannot build the plan.
    """
    reader = LogReader()
    trt = package.module
    builder = trt.Builder(_logger(trt, reader))
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    _parse(package, network, builder.logger, spec, reader)
    _mark_attention(trt, network)
    _check_types(trt, network, spec)
    config = _configure(package, builder, network, spec)
    if package.timing_cache:
        _set_timing_cache(config, spec.timing_cache, reader)
    config.progress_monitor = _monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None or reader.problems:
        raise _refused(package, spec, reader.problems or reader.remarks)
    if package.timing_cache:
        unfinished = spec.timing_cache.with_suffix(".partial")
        unfinished.write_bytes(config.get_timing_cache().serialize())
        unfinished.replace(spec.timing_cache)
    data, log = memoryview(plan), reader.result()
    runtime = trt.Runtime(builder.logger)
    bindings = of_engine(package, runtime, plan) or of_network(network, spec.profiles)
    return Engine(data, bytes(data[: runtime.engine_header_size]), bindings, log)


def _logger(trt: Any, reader: LogReader) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                reader.add(message, "error")
            else:
                reader.add(message, "warning" if severity == trt.ILogger.WARNING else "info")

    return Logger()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Reports the steps of the outermost phase and the name of the current phase."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._done = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._steps[name] = steps if parent is None else 0
            progress(name, self._done)

        def phase_finish(self, name: str) -> None:
            self._steps.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            if steps := self._steps.get(name):
                self._done = (step + 1) / steps
                progress(name, self._done)
            return True

    return Monitor()


def _parse(package: Package, network: Any, logger: Any, spec: BuildSpec, reader: LogReader) -> None:
    parser = package.module.OnnxParser(network, logger)
    if parser.parse_from_file(str(spec.graph)) and not reader.problems:
        return
    said = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    raise _refused(package, spec, said or reader.problems)


def _mark_attention(trt: Any, network: Any) -> None:
    """Allow attention to be decomposed if the package has no fused kernel for it."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the API returns a plain ILayer
            layer.attention.decomposable = True


def _check_types(trt: Any, network: Any, spec: BuildSpec) -> None:
    """Check the nodes that must be float32; a strongly typed network keeps their types."""
    expected = set(spec.float32_nodes)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.name in expected and layer.get_output(0).dtype != trt.float32:
            raise ExportError(
                f"{spec.graph}: the image stream at {layer.name} is"
                f" {layer.get_output(0).dtype}, not float32; export again."
            )


def _configure(package: Package, builder: Any, network: Any, spec: BuildSpec) -> Any:
    trt = package.module
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # TF32 is on by default, but its 10 bits of mantissa are less than float32.
    config.clear_flag(trt.BuilderFlag.TF32)
    for flag in spec.flags:
        config.set_flag(getattr(trt.BuilderFlag, flag.upper()))
    # A CUDA graph cannot record allocations, so nothing may be allocated while a graph runs.
    if package.ahead_of_time and WEIGHT_STREAMING not in spec.flags:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if package.ahead_of_time:
        config.num_compute_capabilities = len(spec.targets)
        for i, capability in enumerate(capabilities(package, spec.targets)):
            config.set_compute_capability(capability, i)
    for shapes in spec.profiles:
        config.add_optimization_profile(_profile(builder, network, shapes))
    return config


def _set_timing_cache(config: Any, file: Path, reader: LogReader) -> None:
    """Use the timings in `file`, or none if it is damaged or from another GPU or version."""
    before = len(reader.problems)
    known = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    del reader.problems[before:]  # messages about such a file are no problem


def _profile(builder: Any, network: Any, shapes: dict[str, Ends]) -> Any:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        profile.set_shape(name, *shapes[name])
    return profile


def _refused(package: Package, spec: BuildSpec, problems: Sequence[str]) -> ExportError:
    targets = ", ".join(spec.targets)
    said = dict.fromkeys(_SOURCE_LINE.sub("", problem).rstrip(".") for problem in problems)
    why = "; ".join(said) or "the log gives no reason"
    return ExportError(
        f"{package.title} cannot build {spec.graph} for {targets}: {why}.", ExitCode.UNAVAILABLE
    )
