"""What a server is told, from a TOML file and flags, and the limits that requests are held to."""

from __future__ import annotations

import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
)

from intaglio import InputError, UsageError
from intaglio.serve.errors import said


class Limits(BaseModel):
    """The most that one request may ask for, or all together; checked before any work starts.

    Attributes:
        width: pixels. height: pixels.
        steps: denoising steps.
        n: images.
        total_pixels: n * width * height.
        prompt_characters: of the prompt, and of the negative prompt.
        body_bytes: of a request's body.
        body_seconds: that a body may take to arrive; a request's head has as long.
        connections: that are open at once; a further one is answered with 503. Well below the
            1024 files that a process may usually have open.
        queue: requests that wait, over all models. Clients share a full one: one that holds its
            share is refused with 429; for another, the newest of the client with most gives way.
        deadline: seconds from acceptance to the end; a request may ask for less.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: PositiveInt = 2048
    height: PositiveInt = 2048
    steps: Annotated[int, Field(ge=1, le=10_000)] = 100  # what any run may have
    n: PositiveInt = 8
    total_pixels: PositiveInt = 8 * 1024 * 1024
    prompt_characters: PositiveInt = 4000
    body_bytes: PositiveInt = 64 * 1024
    body_seconds: PositiveFloat = 10.0
    connections: PositiveInt = 512
    queue: PositiveInt = 64
    deadline: PositiveFloat = 600.0


def _check_proxy(entry: str) -> str:
    if entry != "*":
        ip_network(entry)
    return entry


Proxy = Annotated[str, AfterValidator(_check_proxy)]


class Settings(BaseModel):
    """All of a server's settings; a configuration file has them under these names.

    Attributes:
        host: address to listen on. port: 0 takes a free one.
        api_keys: file with a key a line; None: no keys are asked for.
        cors: origins whose pages may call the server.
        proxies: addresses or networks of reverse proxies, whose X-Forwarded-For and
            X-Forwarded-Proto are believed; "*": anybody's.
        device: as `Pipeline.open` takes it. threads, prepack: likewise; a server loads a model
            once, so it packs unless told not to.
        max_batch: images that share one run of the transformer.
        memory_bytes: of loaded bundles, by the size of their files; None: no limit.
        embedding_bytes: of cached prompt embeddings.
        images: folder for images that are fetched by URL; None: one that ends with the server.
        image_seconds: how long such an image, and an ended job, can be fetched.
        grace: seconds that running requests have to finish once the server is told to stop.
        log_prompts: write prompts into the log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_keys: Path | None = None
    cors: tuple[str, ...] = ()
    proxies: tuple[Proxy, ...] = ("127.0.0.1", "::1")
    device: str = "auto"
    threads: NonNegativeInt = 0
    prepack: bool = True
    max_batch: PositiveInt = 8
    memory_bytes: PositiveInt | None = None
    embedding_bytes: NonNegativeInt = 256 * 1024 * 1024
    images: Path | None = None
    image_seconds: PositiveFloat = 3600.0
    grace: NonNegativeFloat = 30.0
    log_prompts: bool = False
    limits: Limits = Limits()
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def shown(self, name: str) -> str:
        """A setting as whoever gave it knows it: a flag, or a name in a file."""
        return self._origins.get(name, name)


def read_settings(config: Path | None, flags: dict[str, Any]) -> Settings:
    """The file's settings with `flags` (None: not given) laid over them.

    Relative paths in the file are seen from its folder.

    Raises InputError for a file that cannot be read, UsageError naming the setting for a value
    that does not fit.
    """
    values: dict[str, Any] = {}
    if config:
        try:
            values = tomllib.loads(config.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"cannot read --config {config}: {reason}") from None
        for name in ("api_keys", "images"):
            if isinstance(values.get(name), str):
                values[name] = config.parent / values[name]
    origins = {name: f"{name} in {config}" for name in values}
    for name, value in flags.items():
        if value is not None:
            values[name], origins[name] = value, f"--{name.replace('_', '-')}"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as errors:
        wrong = errors.errors()[0]
        name = ".".join(map(str, wrong["loc"]))
        where = f"--config {config}" if config else "the command line"
        if wrong["type"] == "extra_forbidden":
            raise UsageError(f"{where} has a setting {name}, which there is not") from None
        raise UsageError(f"{name} does not fit in {where}: {said(wrong['msg'])}") from None
    settings._origins = origins
    return settings
