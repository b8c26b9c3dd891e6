"""Schemas of requests and answers.

The fields of a request that are options of `Pipeline.generate` come from `REQUEST_OPTIONS`.
"""

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
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from intaglio import _core
from intaglio.serve.api.options import EDITING, REQUEST_OPTIONS, SAMPLING, Kind
from intaglio.serve.errors import ErrorDetail


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from None
    return text


def _or(message: str) -> WrapValidator:
    """Replace pydantic's message for any invalid value by `message`."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise PydanticCustomError("form", message) from None

    return WrapValidator(check)


Text = Annotated[StrictStr, AfterValidator(_check_text)]
# Strict, since pydantic would otherwise accept true and "1" as numbers.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Ramp = Annotated[
    Number | Annotated[list[Number], Field(min_length=1)],
    _or("give one number, [first, last] or a number for each step"),
]
Window = Annotated[tuple[Number, Number], _or("give [start, end]")]
Steps = Annotated[list[StrictInt], _or("give a list of numbers such as [4, 6]")]
Pixels = Annotated[
    StrictStr,
    Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"),
    _or("give WIDTHxHEIGHT, like 32x32"),
]
MAX_SEED = 2**63 - 1
# Fields of OpenAI's API with the values that change nothing here, which some clients always send.
# null is one of them; any other value is refused. True stands for any text.
_WITHOUT_EFFECT: dict[str, Literal[True] | tuple[Any, ...]] = {
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "output_compression": (100,),
    "output_format": ("png",),
    "partial_images": (0,),
    "quality": ("auto", "standard"),
    "seed": (-1,),
    "size": ("auto",),
    "stream": (False,),
    "style": (),
    "user": True,
}
_TYPES: dict[Kind, Any] = {
    Kind.TEXT: Text, Kind.INTEGER: StrictInt, Kind.NUMBER: Number, Kind.RAMP: Ramp,
    Kind.WINDOW: Window, Kind.STEPS: Steps,
}  # fmt: skip
# Bounds that the OpenAPI document states; the library checks all others.
_BOUNDS: dict[str, dict[str, Any]] = {"steps": {"ge": 1}}


def _option(name: str) -> Any:
    """Return the type and field of an option. None stands for the bundle's default."""
    option = REQUEST_OPTIONS[name]
    field = Field(None, description=option.help, **_BOUNDS.get(name, {}))
    return _TYPES[option.kind] | None, field


def _request_fields() -> dict[str, Any]:
    """Return the fields of OpenAI's API, and then the options in the library's order."""
    fields: dict[str, Any] = {
        "model": (Text | None, Field(None, description="a name that /v1/models lists")),
        "prompt": _option("prompt"),
        "n": (
            StrictInt | None,
            Field(None, ge=1, description="number of images; each further seed is one higher"),
        ),
        "size": (Pixels | None, Field(None, description="WIDTHxHEIGHT in pixels")),
    }
    for info in _core.option_infos():
        if info.name in REQUEST_OPTIONS:
            fields.setdefault(info.name, _option(info.name))
        elif info.name == "seeds":
            text = "seed of the first image; a random one if not given, or if -1"
            fields["seed"] = (StrictInt | None, Field(None, ge=-1, le=MAX_SEED, description=text))
    return fields


# The request that /docs offers to send.
_EXAMPLE: dict[str, JsonValue] = {
    "prompt": "a dark ankle boot", "size": "32x32", "steps": 4, "seed": 1,
}  # fmt: skip
_Fields: Any = create_model("RequestFields", **_request_fields())


class GenerationRequest(_Fields):  # type: ignore[misc]
    """What to draw: the fields of OpenAI's API and the options of Intaglio."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, fields: Any) -> Any:
        """Leave out the fields of OpenAI's API that have no effect."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if not _has_no_effect(name, value)}


def values_without_effect(name: str) -> tuple[Any, ...]:
    """Return the values that a field of OpenAI's API may have although it changes nothing."""
    known = _WITHOUT_EFFECT.get(name, ())
    return () if known is True else known


def _has_no_effect(name: str, value: Any) -> bool:
    harmless = _WITHOUT_EFFECT.get(name, ())
    if value is None or harmless is True:
        return name in _WITHOUT_EFFECT and isinstance(value, str | None)
    return any(type(value) is type(known) and value == known for known in harmless)


class ImageRequest(GenerationRequest):
    """The body of /v1/images/generations."""

    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="form in which images are returned; url if not given, as in OpenAI's API"
    )


class EditRequest(ImageRequest):
    """The fields of /v1/images/edits that are no files."""

    mask_blur: Number | None = Field(None, description="pixels by which the mask is blurred first")
    mask_padding: StrictInt | None = Field(
        None,
        description="draw only the part of the image around the mask and so many pixels, in `size`"
        " or the model's default size, and put it back",
    )
    strength: Number | None = Field(
        None,
        description="share of the image that noise replaces, above 0 and up to 1; 0.6 if not given,"
        " unless the image is a reference",
    )


# Names of fields whose values are no texts, although a form can send nothing else.
_PARSED = {
    "n",
    "seed",
    "output_compression",
    "partial_images",
    "stream",
    *EDITING,
} | {name for name, option in REQUEST_OPTIONS.items() if option.kind is not Kind.TEXT}


def is_text(name: str) -> bool:
    """Return whether a field holds a text."""
    return name not in _PARSED


class JobRequest(GenerationRequest):
    """The body of /v1/jobs."""

    response_format: Literal["url"] | None = Field(
        None, description="a job returns its images as URLs"
    )
    preview: StrictBool = Field(True, description="send previews to readers of the job's events")
    deadline: Number | None = Field(
        None, gt=0, description="seconds after which an unfinished job fails"
    )


class ImageData(BaseModel):
    """One image, in the form that the request asked for."""

    b64_json: str | None = None
    url: str | None = None


class ImagesResponse(BaseModel):
    """OpenAI's answer with images."""

    created: int = Field(description="seconds since 1970")
    data: list[ImageData]


class JobView(BaseModel):
    """The state of a job.

    Attributes:
        position: position in the queue while the job is queued; 1 is next.
        step: number of finished steps. steps: number of all steps.
        sigma: the noise level at the start of the last finished step.
        images: URLs of the images of a finished job.
        notes: remarks for the client, such as a truncated prompt.
        timings: seconds of each stage: queued, text, denoise, network (a part of denoise), vae.
        request: the fields of the request, with all defaults and the seed filled in.
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
    """A size in pixels."""

    height: int
    width: int


class Sizes(BaseModel):
    """The sizes that a model draws: multiples of a number of pixels, up to the largest size."""

    multiple: int
    largest: Size


_DEFAULT_FIELDS: dict[str, Any] = {
    name: (_TYPES[REQUEST_OPTIONS[name].kind], ...) for name in SAMPLING
}
_Defaults: Any = create_model("Defaults", **_DEFAULT_FIELDS)


class ModelDefaults(_Defaults):  # type: ignore[misc]
    """The bundle's defaults; a pair goes linearly from the first step to the last."""


class ModelDetails(BaseModel):
    """Properties of a model that OpenAI's list does not have.

    Attributes:
        size: the default size. sizes: the sizes that it draws; None if it draws one size only.
        prompt: whether it draws by prompt.
        classes: the classes of a model that draws by class, otherwise None.
        edits: whether it draws pictures, or masked parts of them, anew.
        references: the number of pictures that an edit may have beside the prompt; 0 for none.
    """

    family: str
    layout: str
    size: Size
    sizes: Sizes | None
    defaults: ModelDefaults
    prompt: bool
    classes: list[int] | None
    edits: bool
    references: int


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
    """The answer to a probe."""

    status: Literal["ok", "stopping", "failed"]
    reason: str | None = None
