"""The bundles that are served: loaded when asked for, evicted when memory runs short."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from intaglio import Bundle, Pipeline, UsageError, _core
from intaglio.onnxruntime_library import onnxruntime_library
from intaglio.serve.embeddings import encoder_hash
from intaglio.serve.errors import ApiError
from intaglio.serve.schemas import (
    ModelDefaults,
    ModelDetails,
    ModelView,
    Ramp,
    Size,
    Sizes,
    Window,
)
from intaglio.serve.settings import Settings


@dataclass(eq=False)
class Model:
    """A bundle under the name that requests give.

    Attributes:
        bytes: of the bundle's files, about what it takes in memory.
        encoders: `encoder_hash` of the bundle; empty without text encoders.
        pipeline: None while it is not loaded.
        wanted: another model waits for the memory of this one.
    """

    name: str
    bundle: Bundle
    bytes: int
    encoders: str
    created: int
    pipeline: Pipeline | None = None
    in_use: bool = False
    wanted: bool = False
    last_used: float = field(default_factory=time.monotonic)

    @property
    def unit(self) -> int:
        """Height and width are multiples of it. Pixels."""
        return self.bundle.latent.vae_scale_factor * self.bundle.patch_size

    @property
    def view(self) -> ModelView:
        """Its entry in the list of models."""
        bundle, latent = self.bundle, self.bundle.latent
        largest = Size(height=latent.max_height, width=latent.max_width)
        details = ModelDetails(
            family=bundle.family,
            layout=bundle.layout,
            size=Size(height=bundle.defaults.height, width=bundle.defaults.width),
            sizes=None if latent.fixed_size else Sizes(multiple=self.unit, largest=largest),
            defaults=defaults_of(bundle),
            prompt=bool(self.encoders),
            classes=list(range(bundle.classes.count)) if bundle.classes else None,
        )
        return ModelView(
            id=self.name, created=self.created, owned_by=bundle.source, intaglio=details
        )


def defaults_of(bundle: Bundle) -> ModelDefaults:
    """The bundle's defaults as fields of a request."""

    def ramp(value: _core.Ramp) -> Ramp:
        return value.first if value.first == value.last else (value.first, value.last)

    def window(value: _core.Window) -> Window:
        return value.start, value.end

    guidance = bundle.defaults.guidance
    return ModelDefaults(
        steps=bundle.defaults.steps,
        cfg_scale=ramp(guidance.cfg_scale),
        dg_scale=ramp(guidance.dg_scale),
        cfg_window=window(guidance.cfg_window),
        dg_window=window(guidance.dg_window),
        ma_keep=ramp(guidance.ma_keep),
    )


def _parse(argument: str) -> tuple[str | None, Path]:
    """The name, if one is given, and the folder."""
    name, equals, folder = argument.partition("=")
    named = bool(equals) and not Path(argument).exists()
    return (name, Path(folder)) if named else (None, Path(argument))


def absolute(argument: str) -> str:
    """FOLDER or NAME=FOLDER with the folder's absolute path, for a process that runs elsewhere."""
    name, path = _parse(argument)
    return str(path.absolute()) if name is None else f"{name}={path.absolute()}"


def open_model(argument: str) -> Model:
    """Checks a bundle, given as FOLDER or NAME=FOLDER.

    Raises InputError for it, UsageError for an empty name.
    """
    name, path = _parse(argument)
    bundle = Bundle.open(path)
    name = bundle.name if name is None else name
    if not name:
        raise UsageError(f"{argument} leaves its model without a name: give NAME={path}")
    return Model(
        name=name,
        bundle=bundle,
        bytes=sum(bundle.file_bytes.values()),
        encoders=encoder_hash(bundle) if bundle.prompt and bundle.prompt.encoders else "",
        created=int((path / "bundle.json").stat().st_mtime),
    )


class Models:
    """All of them, and which are loaded. For any thread."""

    def __init__(self, arguments: Sequence[str], settings: Settings) -> None:
        """Checks every bundle; loads none.

        Raises InputError for a bundle, UsageError for two of one name and for one that
        `memory_bytes` is too small for.
        """
        self._options = settings.model_dump(include={"device", "threads", "prepack"})
        self._memory = settings.memory_bytes
        self._models: dict[str, Model] = {}
        self._changed = threading.Condition()
        self._reserved: set[Model] = set()  # loaded, or being loaded
        self._waiting: deque[Model] = deque()  # for memory, so that none is overtaken
        for argument in arguments:
            model = open_model(argument)
            if model.name in self._models:
                raise UsageError(
                    f"two bundles are called {model.name}: give one as NAME={model.bundle.folder}"
                )
            if self._memory is not None and model.bytes > self._memory:
                raise UsageError(
                    f"{model.name} takes {model.bytes} bytes and memory_bytes is {self._memory}:"
                    " raise it"
                )
            self._models[model.name] = model

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    @property
    def held_at_once(self) -> int:
        """How many are loaded at a time at least, even if they are the largest."""
        if self._memory is None:
            return len(self._models)
        sizes = sorted((model.bytes for model in self), reverse=True)
        return sum(total <= self._memory for total in accumulate(sizes))

    def check_device(self) -> None:
        """Raises what loading would for the device: UsageError if there is none of that name,
        UnavailableError if it is not there, or not for one of the bundles."""
        library = onnxruntime_library() or ""
        options = _core.BackendOptions(**self._options, onnxruntime_library=library)
        for model in self:
            _core.make_backend(options, model.bundle)

    def get(self, name: str | None) -> Model:
        """The model of that name; without a name the only one. Raises ApiError."""
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        names = ", ".join(self._models)
        if name is None:
            message = f"model is missing: give one of {names}"
            raise ApiError(400, "invalid_value", message, param="model")
        if name not in self._models:
            message = f"there is no model {name[:100]!r}: give one of {names}"
            raise ApiError(404, "model_not_found", message, param="model")
        return self._models[name]

    def acquire(self, model: Model) -> Pipeline:
        """Loads `model` unless it is, and keeps it loaded until `release`.

        Waits as `reserve` does. Raises intaglio.Error if it cannot be loaded.
        """
        self.reserve(model)
        try:
            if model.pipeline is None:
                model.pipeline = Pipeline.open(model.bundle.folder, **self._options)
        except BaseException:
            with self._changed:
                model.in_use = False
                self._evict(model)
                self._changed.notify_all()
            raise
        return model.pipeline

    def reserve(self, model: Model) -> None:
        """Keeps the memory of `model` for it until `release`; does not load it.

        Waits for memory while models in use take it.
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
        """Lets `model` be evicted when its memory is needed, now if another waits for it."""
        with self._changed:
            model.in_use = False
            model.last_used = time.monotonic()
            if model.wanted or model.pipeline is None:
                self._evict(model)
            self._changed.notify_all()

    def _evict(self, model: Model) -> None:
        model.pipeline = None
        model.wanted = False
        self._reserved.discard(model)

    def _make_room(self, model: Model) -> bool:
        """Evicts idle models until `model` fits, those not used for longest first.

        If that is not enough, as many of those in use as it takes are asked to end.
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
