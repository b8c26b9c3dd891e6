"""The options of an export, and functions that parse them and read the settings file."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from intaglio_export.errors import ExportError, usage_error


class Layout(enum.StrEnum):
    """How the branches are laid out in graphs."""

    forked = "forked"
    dual = "dual"


class Dtype(enum.StrEnum):
    """The type of weights, matrix products and attention; `Dtype("fp16")` is float16."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"

    @classmethod
    def _missing_(cls, value: object) -> Dtype | None:
        short = {"fp32": cls.float32, "fp16": cls.float16, "bf16": cls.bfloat16}
        return short.get(value) if isinstance(value, str) else None


class Quantize(enum.StrEnum):
    """How the transformer's matrix products are quantised: for ONNX Runtime on the CPU, or as
    QuantizeLinear and DequantizeLinear (Q/DQ) for engines of TensorRT-RTX."""

    int8 = "int8"
    int4 = "int4"
    int8_dynamic = "int8-dynamic"
    fp8 = "fp8"
    int8_qdq = "int8-qdq"
    fp4 = "fp4"


class QuantizeEncoders(enum.StrEnum):
    """How the weights of the text encoders become integers."""

    int8 = "int8"
    int4 = "int4"


class TextEncoders(enum.StrEnum):
    """Which text encoders go into the bundle. Without any, it takes only prompt embeddings."""

    all = "all"
    no_t5 = "no-t5"
    none = "none"


LAYOUTS = tuple(Layout)
QUANTIZE = tuple(Quantize)
QDQ = (Quantize.fp8, Quantize.int8_qdq, Quantize.fp4)
# Schemes that store rows of D_0 and D_m as differences from the row of D_c, named by `anchor`.
ANCHORED = (Quantize.int8_dynamic, *QDQ)


@dataclass(frozen=True)
class ExportRequest:
    """What to export and how. The values of the enums may be given as strings.

    `source` and `config` are as in `sources.open_source`, and `loras` as in `parse_lora`.
    `block` and `channels` (as in `parse_channels`) override the file `settings`, which overrides
    the source's own settings.json, which overrides a recipe. With `observe` the transformer also
    outputs what its blocks compute, as in `transformer_units`. `quantize` needs float32, unless it
    is one of `QDQ`; `quantize_encoders` fits every dtype.
    """

    source: str | Path
    output: Path
    layout: Layout | str = Layout.forked
    dtype: Dtype | str = Dtype.float32
    block: int | None = None
    channels: str | None = None
    settings: Path | None = None
    text_encoders: TextEncoders | str = TextEncoders.all
    config: str | None = None
    loras: tuple[str, ...] = ()
    observe: bool = False
    quantize: Quantize | str | None = None
    quantize_encoders: QuantizeEncoders | str | None = None

    def __post_init__(self) -> None:
        for name, values in (("layout", Layout), ("dtype", Dtype), ("text_encoders", TextEncoders)):
            object.__setattr__(self, name, values(getattr(self, name)))


def check_quantize(request: ExportRequest) -> None:
    """Check that the schemes of `request` are known and fit its precision, layout and encoders.

    Raises:
        ExportError: one of these is not the case.
    """
    _check_quantize_encoders(request)
    if request.quantize is None:
        return
    if request.quantize not in QUANTIZE:
        raise usage_error(f"--quantize {request.quantize}: expected {' or '.join(QUANTIZE)}.")
    if request.dtype != Dtype.float32 and request.quantize not in QDQ:
        raise usage_error(
            f"--quantize {request.quantize} works with --dtype float32 only, because everything but"
            f" the weights stays float32; leave out --quantize or --dtype {request.dtype}."
        )
    if request.quantize in ANCHORED and request.layout == Layout.dual:
        raise usage_error(
            f"--quantize {request.quantize} stores D_m as differences from D_c, which --layout dual"
            " does not run beside it; use --layout forked, or --quantize int8 or int4."
        )


def _check_quantize_encoders(request: ExportRequest) -> None:
    scheme = request.quantize_encoders
    if scheme is None:
        return
    if scheme not in tuple(QuantizeEncoders):
        raise usage_error(
            f"--quantize-encoders {scheme}: expected {' or '.join(QuantizeEncoders)}."
        )
    if request.text_encoders == TextEncoders.none:
        raise usage_error(
            f"--quantize-encoders {scheme} needs text encoders, and --text-encoders none leaves"
            " them out; leave out one of the two."
        )


@dataclass(frozen=True)
class ChannelChoice:
    """Which channels to suppress.

    The kind is `auto` for the massive channels and `top` for the `count` largest. For the given
    `channels` it is `list` if a flag gave them and `settings` if a file did, as in the manifest's
    `found_by`.
    """

    kind: str
    channels: tuple[int, ...] = ()
    count: int = 0


def parse_channels(text: str) -> ChannelChoice:
    """Read `auto`, `top:K` or `810,676,...`.

    Raises:
        ExportError: `text` is none of these, or names a channel twice.
    """
    text = text.strip()
    if text == "auto":
        return ChannelChoice("auto")
    if text.startswith("top:"):
        count = text.removeprefix("top:").strip()
        if not (count.isascii() and count.isdigit()) or int(count) == 0:
            raise usage_error(f"--channels {text}: top: needs a count of 1 or more, as in top:4.")
        return ChannelChoice("top", count=int(count))
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise usage_error(
            f"--channels {text or '(empty)'}: expected auto, top:K or numbers as in 810,676."
        )
    channels = tuple(int(part) for part in parts)
    if len(set(channels)) < len(channels):
        raise usage_error(f"--channels {text}: a channel is named twice.")
    return ChannelChoice("list", channels)


@dataclass(frozen=True)
class Lora:
    """A LoRA file and the scale at which it is added to the weights."""

    file: Path
    scale: float = 1.0


def parse_lora(text: str) -> Lora:
    """Read `FILE` or `FILE:SCALE`.

    Raises:
        ExportError: no file is named, or the scale is not finite.
    """
    head, colon, tail = text.rpartition(":")
    if colon and not Path(text).is_file():
        try:
            scale = float(tail)
        except ValueError:
            pass  # the colon belongs to the file's name
        else:
            if not head or not math.isfinite(scale):
                raise usage_error(
                    f"--lora {text}: expected FILE or FILE:SCALE, as in f.safetensors:0.8."
                )
            return Lora(Path(head), scale)
    if not text:
        raise usage_error("--lora (empty): expected FILE or FILE:SCALE, as in f.safetensors:0.8.")
    return Lora(Path(text))


@dataclass(frozen=True)
class ModelSettings:
    """What is known about a model: the op's block and channels, and the defaults of generation.

    None means that nothing is known. `channels` is as in `parse_channels`, or a list of numbers. A
    settings file may also hold `evidence`, which says how the values were found and is not read.
    `distilled` says whether the model was distilled to do without CFG.
    `skipping` has schedules of `intaglio.analysis.skipping`: which steps may be skipped.
    """

    name: str | None = None
    license: str | None = None
    block: int | None = None
    channels: str | list[int] | None = None
    ref: list[float] | None = None
    keep: float | list[float] | None = None
    dg_scale: float | None = None
    dg_window: list[float] | None = None
    cfg_scale: float | None = None
    cfg_window: list[float] | None = None
    distilled: bool | None = None
    distilled_guidance: float | None = None
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    max_sequence_length: int | None = None
    skipping: list[dict[str, Any]] | None = None

    def over(self, other: ModelSettings) -> ModelSettings:
        """Return these settings, completed with those of `other`.

        `ref` belongs to `channels`, so it is not taken from `other` if the channels are not.
        """
        known = {
            f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None
        }
        if "channels" in known and "ref" not in known:
            other = replace(other, ref=None)
        return replace(other, **known)

    def channel_choice(self) -> ChannelChoice | None:
        """Return what `channels` says, or None."""
        if self.channels is None:
            return None
        if isinstance(self.channels, str):
            return parse_channels(self.channels)
        return ChannelChoice("settings", tuple(self.channels))

    def keep_range(self) -> list[float]:
        """Return `keep` at the first and at the last step; the default is full suppression."""
        if self.keep is None:
            return [0.0, 0.0]
        return self.keep if isinstance(self.keep, list) else [self.keep, self.keep]


_NUMBER = {"type": "number", "minimum": -3.4e38, "maximum": 3.4e38}  # float32 in the runtime
_SCALE = _NUMBER | {"minimum": 0}
_UNIT = {"type": "number", "minimum": 0, "maximum": 1}
_COUNT = {"type": "integer", "minimum": 1}
_STEPS = _COUNT | {"maximum": 10000}  # the runtime's own limit
_TWO = {"minItems": 2, "maxItems": 2}
_WINDOW = {"type": "array", "items": _UNIT} | _TWO
_INDEX = {"type": "integer", "minimum": 0}
SETTINGS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "license": {"type": "string", "minLength": 1},
        "block": _INDEX,
        "channels": {
            "oneOf": [
                {"type": "string", "pattern": "^(auto|top:[1-9][0-9]*)$"},
                {"type": "array", "items": _INDEX, "minItems": 1, "uniqueItems": True},
            ]
        },
        "ref": {"type": "array", "items": _NUMBER},
        "keep": {"oneOf": [_UNIT, _WINDOW]},
        "dg_scale": _NUMBER,
        "dg_window": _WINDOW,
        "cfg_scale": _SCALE,
        "cfg_window": _WINDOW,
        "distilled": {"type": "boolean"},
        "distilled_guidance": _SCALE,
        "steps": _STEPS,
        "height": _COUNT,
        "width": _COUNT,
        "max_sequence_length": _COUNT | {"maximum": 512},  # diffusers' own limit
        "skipping": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["steps", "scheduler", "skipped", "tolerance"],
                "properties": {
                    "steps": _STEPS,
                    "scheduler": {"type": "string", "minLength": 1},
                    "skipped": {
                        "type": "array",
                        "items": _INDEX,
                        "minItems": 1,
                        "uniqueItems": True,
                    },
                    "tolerance": {"type": "number", "exclusiveMinimum": 0},
                    "evidence": {
                        "type": "object",
                        "properties": {
                            name: {"type": "number", "minimum": 0}
                            for name in ("evaluations", "error", "largest_error")
                        },
                    },
                },
            },
        },
        "evidence": {},
    },
}


_WINDOWS = ("dg_window", "cfg_window")


def read_settings(path: Path) -> ModelSettings:
    """Read a settings file: a JSON object whose keys are the fields of `ModelSettings`.

    Raises:
        ExportError: the file is missing, is not JSON, does not fit `SETTINGS_SCHEMA`, or has an
            empty window.
    """
    data = _load(path)
    _validate(path, data)
    for name in _WINDOWS:
        start, end = data.get(name, (0, 1))
        if start >= end:
            raise ExportError(
                f"The settings file {path}: {name} [{start:g}, {end:g}] is empty; its start must be"
                " smaller than its end."
            )
    known = {f.name for f in fields(ModelSettings)}
    return ModelSettings(**{key: value for key, value in data.items() if key in known})


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # fails for a lone surrogate
    except OSError as error:
        raise ExportError(f"Cannot read the settings file {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"The settings file {path} is not JSON: {error}.") from error
    return data


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large")
    return value


def _validate(path: Path, data: Any) -> None:
    import jsonschema

    # Later drafts than 4 accept 3.0 as an integer, which Python cannot index with.
    validator = jsonschema.Draft4Validator(SETTINGS_SCHEMA)
    error = jsonschema.exceptions.best_match(validator.iter_errors(data))
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the top level"
        raise ExportError(f"The settings file {path}: {error.message} (at {where}).")
