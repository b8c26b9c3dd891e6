"""Requests and answers. Fields that `Pipeline.generate` has too are described by its own list."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from intaglio import _core
from intaglio.serve.errors import ErrorDetail

# The command line's S0:S1 is a pair here.
_HELP = {info.name: info.help.replace("S0:S1", "[first, last]") for info in _core.option_infos()}


def _option(name: str, **limits: Any) -> Any:
    """A field that is left to the bundle's default, with the help of the option of that name."""
    return Field(None, description=_HELP[name], **limits)


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from None
    return text


def _or(message: str) -> WrapValidator:
    """Says `message` of whatever does not fit."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise PydanticCustomError("form", message) from None

    return WrapValidator(check)


Text = Annotated[StrictStr, AfterValidator(_check_text)]
# JSON has true and "1" beside 1; a number is a number here.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Ramp = Annotated[Number | tuple[Number, Number], _or("give one number or [first, last]")]
Window = Annotated[tuple[Number, Number], _or("give [start, end]")]
Pixels = Annotated[
    StrictStr,
    Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"),
    _or("give WIDTHxHEIGHT, like 32x32"),
]
MAX_SEED = 2**63 - 1


# What /docs offers to send.
_EXAMPLE: dict[str, JsonValue] = {
    "prompt": "a dark ankle boot", "size": "32x32", "steps": 4, "seed": 1,
}  # fmt: skip


class GenerationRequest(BaseModel):
    """What to draw: OpenAI's fields, and Intaglio's at their side."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    model: Text | None = Field(None, description="a name that /v1/models lists")
    prompt: Text | None = _option("prompt")
    n: StrictInt | None = Field(None, ge=1, description="images; the seeds of further ones follow")
    size: Pixels | None = Field(None, description="WIDTHxHEIGHT in pixels")
    class_label: StrictInt | None = _option("class_label")
    negative_prompt: Text | None = _option("negative_prompt")
    steps: StrictInt | None = _option("steps", ge=1)
    seed: StrictInt | None = Field(
        None, ge=0, le=MAX_SEED, description="of the first image; one is drawn if not given"
    )
    cfg_scale: Ramp | None = _option("cfg_scale")
    cfg_window: Window | None = _option("cfg_window")
    dg_scale: Ramp | None = _option("dg_scale")
    dg_window: Window | None = _option("dg_window")
    ma_keep: Ramp | None = _option("ma_keep")


class ImageRequest(GenerationRequest):
    """The body of /v1/images/generations."""

    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="how images come back; url if not given, as OpenAI has it"
    )


class JobRequest(GenerationRequest):
    """The body of /v1/jobs."""

    response_format: Literal["url"] | None = Field(None, description="a job's images have URLs")
    preview: StrictBool = Field(True, description="send previews to those who follow the events")
    deadline: Number | None = Field(
        None, gt=0, description="seconds after which the job ends as failed"
    )


class ImageData(BaseModel):
    """One image, in the form that was asked for."""

    b64_json: str | None = None
    url: str | None = None


class ImagesResponse(BaseModel):
    """OpenAI's answer with images."""

    created: int = Field(description="seconds since 1970")
    data: list[ImageData]


class JobView(BaseModel):
    """What a job has come to.

    Attributes:
        position: place in the queue while queued: 1 is next.
        step: steps done. steps: of the run. sigma: the noise level that the last one started from.
        images: URLs, once done.
        notes: what the client should know: a prompt that was cut.
        timings: seconds: queued, text, denoise, network (of denoise), vae.
        request: the fields of the request with defaults filled in, the seed too.
    """

    id: str
    model: str
    created: int
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    position: int | None = None
    step: int
    steps: int
    sigma: float | None = None
    images: list[str]
    notes: list[str]
    error: ErrorDetail | None = None
    timings: dict[str, float]
    request: dict[str, Any]


class Size(BaseModel):
    """Pixels."""

    height: int
    width: int


class Sizes(BaseModel):
    """The sizes that a model draws: multiples up to the largest. Pixels."""

    multiple: int
    largest: Size


class ModelDefaults(BaseModel):
    """What a field is when it is not given; a pair goes from the first step to the last."""

    steps: int
    cfg_scale: Ramp
    dg_scale: Ramp
    cfg_window: Window
    dg_window: Window
    ma_keep: Ramp


class ModelDetails(BaseModel):
    """What OpenAI's list has no place for.

    Attributes:
        size: drawn when none is given. sizes: None for a model of this one size.
        prompt: whether it is drawn by prompt.
        classes: those it is drawn by instead, or None.
    """

    family: str
    layout: str
    size: Size
    sizes: Sizes | None
    defaults: ModelDefaults
    prompt: bool
    classes: list[int] | None


class ModelView(BaseModel):
    """One entry of OpenAI's list of models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    intaglio: ModelDetails


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ModelView]


class Health(BaseModel):
    """What a probe is told."""

    status: Literal["ok", "stopping"]
