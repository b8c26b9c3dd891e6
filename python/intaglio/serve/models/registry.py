"""The served models: each is loaded on first use and evicted when memory runs short."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from intaglio import (
    Bundle,
    OutOfMemoryError,
    Pipeline,
    UnavailableError,
    UsageError,
    _core,
)
from intaglio.onnxruntime_library import onnxruntime_library
from intaglio.serve import logs
from intaglio.serve.errors import ApiError
from intaglio.serve.models.embeddings import encoder_hash
from intaglio.serve.settings import ServerSettings


@dataclass(eq=False)
class Model:
    """A bundle, with the name by which requests refer to it.

    Attributes:
        bytes: the memory that its plan takes, with `max_batch` images of the default size.
        encoders: `encoder_hash` of the bundle; empty if it has no text encoders.
        device: what it runs on, never auto; None before it was checked or loaded.
        pipeline: the loaded bundle; None while it is not loaded.
        in_use: a worker has acquired or reserved it.
        wanted: another model waits for the memory of this one.
    """

    name: str
    bundle: Bundle
    bytes: int
    encoders: str
    created: int
    device: str | None = None
    pipeline: Pipeline | None = None
    in_use: bool = False
    wanted: bool = False
    last_used: float = field(default_factory=time.monotonic)


def _parse(argument: str) -> tuple[str | None, Path]:
    """Return the name, or None if none is given, and the folder."""
    name, equals, folder = argument.partition("=")
    named = bool(equals) and not Path(argument).exists()
    return (name, Path(folder)) if named else (None, Path(argument))


def absolute(argument: str) -> str:
    """Return FOLDER or NAME=FOLDER with an absolute path, for a process in another folder."""
    name, path = _parse(argument)
    return str(path.absolute()) if name is None else f"{name}={path.absolute()}"


def open_model(argument: str, settings: ServerSettings | None = None) -> Model:
    """Check the bundle that FOLDER or NAME=FOLDER refers to.

    Raises InputError for an invalid bundle, and UsageError for an empty name or for a bundle that
    does not fit `memory_bytes`.
    """
    name, path = _parse(argument)
    bundle = Bundle.open(path)
    name = bundle.name if name is None else name
    if not name:
        raise UsageError(f"{argument} gives its model an empty name: give NAME={path}")
    return Model(
        name=name,
        bundle=bundle,
        bytes=_planned_bytes(name, bundle, settings or ServerSettings()),
        encoders=encoder_hash(bundle) if bundle.prompt and bundle.prompt.encoders else "",
        created=int((path / "bundle.json").stat().st_mtime),
    )


def _planned_bytes(name: str, bundle: Bundle, settings: ServerSettings) -> int:
    """Return what a batch of the bundle takes; its parts run in turn if they do not fit together.

    Raises UsageError if it does not fit `memory_bytes`.
    """
    device = "cpu" if settings.devices[0] == "auto" else settings.devices[0]
    plan_with = partial(
        _core.plan_memory,
        bundle,
        device=device,
        prepack=settings.prepack,
        together=settings.max_batch,
    )
    plan = plan_with()
    limit = settings.memory_bytes
    if limit is not None and plan.peak - plan.program > limit:
        try:
            plan = plan_with(max_memory=str(plan.program + limit))
        except OutOfMemoryError as error:
            raise UsageError(
                f"{name} needs more memory: memory_bytes is {limit}, and with the server itself,"
                f" {error}"
            ) from None
    return plan.peak - plan.program


class Models:
    """All served models, and which of them are loaded. Methods may be called from any thread."""

    def __init__(
        self,
        arguments: Sequence[str],
        settings: ServerSettings,
        devices: Mapping[str, str] | None = None,
    ) -> None:
        """Check every bundle without loading it.

        `devices` has the device of each model by its name, as `check_devices` returned them in
        another process; without it, all have that of the settings.

        Raises InputError for an invalid bundle, and UsageError for two bundles with one name or for
        a bundle that is larger than `memory_bytes`.
        """
        backend = {"device", "precision", "provider_library", "threads", "prepack"}
        self._options = settings.model_dump(include=backend, exclude_none=True)
        self._memory = settings.memory_bytes
        self._models: dict[str, Model] = {}
        self._changed = threading.Condition()
        self._reserved: set[Model] = set()  # loaded, or about to be loaded
        self._waiting: deque[Model] = deque()  # for memory; first come, first served
        for argument in arguments:
            model = open_model(argument, settings)
            if model.name in self._models:
                raise UsageError(
                    f"two bundles are named {model.name}: give one as NAME={model.bundle.folder}"
                )
            if devices:
                model.device = devices[model.name]
            self._models[model.name] = model

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    @property
    def loaded_at_once(self) -> int:
        """Return how many models fit into memory together, whichever they are."""
        if self._memory is None:
            return len(self._models)
        sizes = sorted((model.bytes for model in self), reverse=True)
        return sum(total <= self._memory for total in accumulate(sizes))

    def check_devices(self) -> dict[str, str]:
        """Return the device of each model by its name, never auto.

        A model keeps its device from the first call on, since auto would take the CPU in the place
        of a GPU that is lost.

        Raises UsageError for an unknown device, and UnavailableError for a device that is not
        present, does not work, or cannot run one of the bundles, as loading would.
        """
        library = onnxruntime_library() or ""
        found = {}
        for model in self:
            options = _core.BackendOptions(**self._options_of(model), onnxruntime_library=library)
            choice = _core.make_backend(options, model.bundle).choice
            if choice.note:
                warnings.warn(f"running on {choice.device}, since {choice.note}", stacklevel=2)
            found[model.name] = model.device = choice.device
        return found

    def leave_if_lost(self, error: UnavailableError) -> None:
        """End this process if its device does not work any more, after `error` in a run on it.

        CUDA, for example, refuses every call of a process after an illegal address. A request that
        the device cannot run leaves the device as it was.
        """
        try:
            self.check_devices()
        except UnavailableError as lost:
            logs.fault("device_lost", error=str(error), reason=str(lost))
            os._exit(lost.exit_code)

    def get(self, name: str | None) -> Model:
        """Return the model with that name, or the only one if no name is given. Raises ApiError."""
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        names = ", ".join(self._models)
        if name is None:
            message = f"model is missing: give one of {names}"
            raise ApiError(400, "invalid_value", message, param="model")
        if name not in self._models:
            near = get_close_matches(name[:100], self._models, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            message = f"there is no model {name[:100]!r}{meant}: give one of {names}"
            raise ApiError(404, "model_not_found", message, param="model")
        return self._models[name]

    def acquire(self, model: Model) -> Pipeline:
        """Load `model` if necessary, and keep it loaded until `release`.

        Waits for memory as `reserve` does. Raises intaglio.Error if the bundle cannot be loaded.
        """
        self.reserve(model)
        try:
            if model.pipeline is None:
                model.pipeline = Pipeline.open(
                    model.bundle.folder, **self._options_of(model), max_memory=self._limit(model)
                )
                model.device = model.pipeline.device
        except BaseException:
            with self._changed:
                model.in_use = False
                self._evict(model)
                self._changed.notify_all()
            raise
        return model.pipeline

    def reserve(self, model: Model) -> None:
        """Reserve the memory of `model` until `release`, without loading the model.

        Waits while models in use occupy the memory.
        """
        with self._changed:
            if model not in self._reserved:
                self._waiting.append(model)
                while self._waiting[0] is not model or not self._make_room(model):
                    self._changed.wait()
                self._waiting.popleft()
                self._changed.notify_all()
                self._reserved.add(model)
            model.in_use = True

    def release(self, model: Model) -> None:
        """Allow `model` to be evicted, and evict it at once if another model waits for memory."""
        with self._changed:
            model.in_use = False
            model.last_used = time.monotonic()
            if model.wanted or model.pipeline is None:
                self._evict(model)
            self._changed.notify_all()

    def _options_of(self, model: Model) -> dict[str, Any]:
        """Return the options of `Pipeline.open`."""
        return self._options if model.device is None else {**self._options, "device": model.device}

    def _limit(self, model: Model) -> int | None:
        """Return `max_memory` of the model, which has all memory if there is no other."""
        if self._memory is None:
            return None
        program = _core.plan_memory(model.bundle, device=model.device or "cpu").program
        share = self._memory if len(self._models) == 1 else model.bytes
        return program + share

    def _evict(self, model: Model) -> None:
        model.pipeline = None
        model.wanted = False
        self._reserved.discard(model)

    def _make_room(self, model: Model) -> bool:
        """Evict idle models, least recently used first, until `model` fits. Return whether it fits.

        If that is not enough, mark as many models in use as necessary as `wanted`.
        """
        if self._memory is None:
            return True
        excess = sum(m.bytes for m in self._reserved) + model.bytes - self._memory
        fits = True
        for other in sorted(self._reserved, key=lambda m: (m.in_use, m.last_used)):
            other.wanted = other.in_use and excess > 0
            if other.wanted:
                fits = False
            elif excess > 0:
                self._evict(other)
            excess -= other.bytes
        return fits
