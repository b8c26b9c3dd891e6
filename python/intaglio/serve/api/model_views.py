"""Models as entries of /v1/models."""

from __future__ import annotations

from typing import Any

from intaglio import Bundle
from intaglio.serve.api.options import REQUEST_OPTIONS, SAMPLING, Kind
from intaglio.serve.api.schemas import ModelDefaults, ModelDetails, ModelView, Size, Sizes
from intaglio.serve.models.registry import Model


def model_view(model: Model) -> ModelView:
    """Return the model's entry in the list of models."""
    bundle, latent, references = model.bundle, model.bundle.latent, model.bundle.references
    largest = Size(height=latent.max_height, width=latent.max_width)
    details = ModelDetails(
        family=bundle.family,
        layout=bundle.layout,
        size=Size(height=bundle.defaults.height, width=bundle.defaults.width),
        sizes=None if latent.fixed_size else Sizes(multiple=bundle.size_multiple, largest=largest),
        defaults=defaults_of(bundle),
        prompt=bool(model.encoders),
        classes=list(range(bundle.classes.count)) if bundle.classes else None,
        edits=bundle.vae_encoder is not None and not (references and references.only),
        references=references.most if references else 0,
    )
    return ModelView(id=model.name, created=model.created, owned_by=bundle.source, intaglio=details)


def defaults_of(bundle: Bundle) -> ModelDefaults:
    """Return the bundle's defaults of all options that have one."""
    return ModelDefaults(**{name: _default(bundle, name) for name in SAMPLING})


def _default(bundle: Bundle, name: str) -> Any:
    defaults = bundle.defaults
    value = getattr(defaults if hasattr(defaults, name) else defaults.guidance, name)
    kind = REQUEST_OPTIONS[name].kind
    if kind is Kind.RAMP:
        return value.first if value.first == value.last else (value.first, value.last)
    return (value.start, value.end) if kind is Kind.WINDOW else value
