"""Settings of a server, read from a TOML file and flags, and the limits on requests."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
)

from intaglio import InputError, UsageError
from intaglio.serve.errors import reason


class Limits(BaseModel):
    """Limits on requests, checked before any work starts.

    Attributes:
        width: pixels. height: pixels.
        steps: denoising steps.
        n: images per request.
        total_pixels: n * width * height, and n times the pixels of scaled references.
        prompt_characters: length of the prompt, and of the negative prompt.
        body_bytes: size of a request's body.
        upload_bytes: the same of a request with pictures.
        upload_pixels: width * height of all images of a request together, and of its mask, before
            they are scaled.
        body_seconds: time in which the body must arrive; the head of a request has the same time.
        connections: open connections, idle ones included. A further connection is answered with
            503. The default is well below 1024, the usual limit on the open files of a process.
        queue: waiting requests of all models. When the queue is full, a client that has its share
            or more in it is rejected with 429. For any other client, the newest request of the
            client with the most requests is removed.
        deadline: seconds from acceptance to the end; a request may ask for less.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: PositiveInt = 2048
    height: PositiveInt = 2048
    steps: Annotated[int, Field(ge=1, le=10_000)] = 100  # the library's own maximum
    n: PositiveInt = 8
    total_pixels: PositiveInt = 8 * 1024 * 1024
    prompt_characters: PositiveInt = 4000
    body_bytes: PositiveInt = 64 * 1024
    upload_bytes: PositiveInt = 20 * 1024 * 1024
    upload_pixels: PositiveInt = 16 * 1024 * 1024
    body_seconds: PositiveFloat = 10.0
    connections: PositiveInt = 512
    queue: PositiveInt = 64
    deadline: PositiveFloat = 600.0


def _check_proxy(entry: str) -> str:
    if entry != "*":
        ip_network(entry)
    return entry


def _check_devices(device: str) -> str:
    names = [name.strip() for name in device.split(",")]
    if len(names) > 1 and "auto" in names:
        raise ValueError("auto is one device: give the names of all devices instead")
    if len({_card(name) for name in names}) < len(names):
        raise ValueError(f"{device} names a device twice")
    return ",".join(names)


def _card(name: str) -> tuple[str, str]:
    """Return the kind of a device and which of that kind, where a name without it is the first."""
    kind, _, which = name.partition(":")
    which = which or ("cpu" if kind == "openvino" else "0")
    return kind, which.lstrip("0") or "0"


def _has_extras(url: AnyUrl) -> bool:
    return bool(url.query or url.fragment or url.username or url.password)


def _check_public_url(url: HttpUrl) -> HttpUrl:
    if _has_extras(url):
        raise ValueError("give SCHEME://HOST/PATH only")
    return url


def _clean_origin(origin: str) -> str:
    """Return the origin in the form in which browsers send it."""
    if origin in {"*", "null"}:
        return origin
    try:
        url = AnyUrl(origin)
    except ValidationError:
        url = None
    if not url or not url.host or url.path not in {None, "/"} or _has_extras(url):
        raise ValueError(f"{origin} is no origin: give SCHEME://HOST or SCHEME://HOST:PORT")
    return str(url).rstrip("/")  # str() leaves out a default port


Origin = Annotated[str, AfterValidator(_clean_origin)]
Proxy = Annotated[str, AfterValidator(_check_proxy)]
PublicUrl = Annotated[HttpUrl, AfterValidator(_check_public_url)]


class ServerSettings(BaseModel):
    """All settings of a server; a configuration file has them under these names.

    Attributes:
        host: address to listen on. port: port to listen on; 0 selects a free one.
        api_keys: file with one key per line; None: no key is required.
        cors: origins whose pages may call the server.
        proxies: addresses or networks of reverse proxies whose X-Forwarded-For, -Proto, -Host and
            -Prefix are trusted; "*" trusts every address.
        public_url: the URL under which clients reach the server, for the URLs of images; None:
            they are as the request's headers say.
        keep_alive: seconds after which a connection without a request is closed. It has to be
            longer than a load balancer in front keeps connections for.
        device: device of `Pipeline.open`, or several with commas between them: each has a process
            of its own, and all of them serve the same requests.
        precision: of `Pipeline.open`. provider_library: likewise. threads: likewise. prepack:
            likewise, but on by default, since a server loads a model once and then runs it many
            times.
        max_batch: images that share one run of the transformer.
        memory_bytes: most memory for the loaded bundles, by their plans (docs/decisions/0022);
            None: no limit.
        embedding_bytes: size of the cached prompt embeddings.
        images: folder for images that are fetched by URL; None: a temporary folder that is removed
            when the server stops.
        image_seconds: how long such an image, or a finished job, can be fetched.
        grace: seconds that running requests have to finish after the server is asked to stop.
        log_prompts: whether prompts are written to the log.
        metadata: whether a PNG has the prompt and the options that draw it again inside.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_keys: Path | None = None
    cors: tuple[Origin, ...] = ()
    proxies: tuple[Proxy, ...] = ("127.0.0.1", "::1")
    public_url: PublicUrl | None = None
    keep_alive: PositiveFloat = 75.0
    device: Annotated[str, AfterValidator(_check_devices)] = "auto"
    precision: str = "float32"
    provider_library: Path | None = None
    threads: NonNegativeInt = 0
    prepack: bool = True
    max_batch: PositiveInt = 8
    memory_bytes: PositiveInt | None = None
    embedding_bytes: NonNegativeInt = 256 * 1024 * 1024
    images: Path | None = None
    image_seconds: PositiveFloat = 3600.0
    grace: NonNegativeFloat = 30.0
    log_prompts: bool = False
    metadata: bool = True
    limits: Limits = Limits()
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def devices(self) -> list[str]:
        """The names in `device`."""
        return self.device.split(",")

    def shown(self, name: str) -> str:
        """Return where the setting was given: as a flag, or as a name in the configuration file."""
        return self._origins.get(name, name)


def _advice(unknown: str) -> str:
    """Return what to do about a setting that there is not."""
    names = [*ServerSettings.model_fields, *(f"limits.{name}" for name in Limits.model_fields)]
    near = get_close_matches(unknown, names, 1)
    return f"use {near[0]}" if near else "remove it"


def read_settings(config: Path | None, flags: dict[str, Any]) -> ServerSettings:
    """Read the configuration file and override it with the flags that are not None.

    Relative paths in the file are relative to its folder.

    Raises InputError if the file cannot be read, and UsageError, which names the setting, for an
    unknown setting or an invalid value.
    """
    values: dict[str, Any] = {}
    if config:
        try:
            # Some editors begin a file with a byte order mark.
            values = tomllib.loads(config.read_text("utf-8-sig"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"cannot read --config {config}: {cause}") from None
        for name in ("api_keys", "images", "provider_library"):
            if isinstance(values.get(name), str):
                values[name] = config.parent / values[name]
    origins = {name: f"{name} in {config}" for name in values}
    for name, value in flags.items():
        if value is not None:
            values[name], origins[name] = value, f"--{name.replace('_', '-')}"
    try:
        settings = ServerSettings.model_validate(values)
    except ValidationError as errors:
        wrong = errors.errors()[0]
        name = ".".join(map(str, wrong["loc"]))
        where = f"--config {config}" if config else "the command line"
        if wrong["type"] == "extra_forbidden":
            raise UsageError(f"{where} has an unknown setting {name}: {_advice(name)}") from None
        raise UsageError(f"{name} is invalid in {where}: {reason(wrong['msg'])}") from None
    settings._origins = origins
    return settings
