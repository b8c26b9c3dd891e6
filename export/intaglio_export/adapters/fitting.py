"""Check that the parts of a pipeline fit each other, so that no matrix product fails later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intaglio_export.adapters.base import Adapter
from intaglio_export.adapters.layouts import PromptLayout
from intaglio_export.errors import ExportError


def check_parts(adapter: Adapter, source: str) -> None:
    """Compare the widths of the text encoders and of the VAE with those that the transformer takes.

    `source` names the model in the message.

    Raises:
        ExportError: two differ, or an encoder gets more tokens than it has positions for.
    """
    vae = adapter.pipeline.vae.config
    latent = vae.get("latent_channels", vae.get("z_dim"))
    if latent != (taken := adapter.vae_channels):
        raise _unfit(source, "vae", latent, "latent channels", taken)
    prompt = adapter.prompt(1)
    if prompt is not None and adapter.has_encoders:
        _check_encoders(adapter, prompt, source)


def _check_encoders(adapter: Adapter, prompt: PromptLayout, source: str) -> None:
    for name, layout in prompt.encoders.items():
        config = getattr(adapter.pipeline, name).config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and layout.max_length > positions:
            raise ExportError(
                f"In {source}, the {layout.tokenizer} makes {layout.max_length} tokens of a prompt"
                f" (model_max_length), and the {name} has {positions} positions for them"
                " (max_position_embeddings): they are of different models; exchange one of them."
            )
    for segment in prompt.text:
        width = sum(
            widths(getattr(adapter.pipeline, name), prompt.encoders[name].taps)["hidden"]
            for name in segment.encoders
        )
        # Several encoders side by side may be narrower: the pipeline fills them up with zeros.
        narrow = width < prompt.text_width and len(segment.encoders) == 1
        if narrow or width > prompt.text_width:
            raise _unfit(
                source, " and ".join(segment.encoders), width, "channels", prompt.text_width
            )
    pooled = next((spec.axes[-1] for spec in adapter.inputs() if spec.role == "pooled"), None)
    width = sum(widths(getattr(adapter.pipeline, name))["pooled"] for name in prompt.pooled)
    if pooled is not None and width != pooled:
        raise _unfit(source, " and ".join(prompt.pooled), width, "pooled channels", pooled)


def widths(encoder: Any, taps: Sequence[int] = ()) -> dict[str, int]:
    """Return the number of channels of an encoder's outputs `hidden` and `pooled`.

    `taps` are the hidden states of a language model, which has no pooled output.
    """
    if taps:
        return {"hidden": encoder.get_decoder().config.hidden_size * len(taps), "pooled": 0}
    width = encoder.config.hidden_size
    projected = hasattr(encoder, "text_projection")
    return {"hidden": width, "pooled": encoder.config.projection_dim if projected else width}


def _unfit(source: str, part: str, given: int, what: str, taken: Any) -> ExportError:
    verb = "give" if " and " in part else "gives"
    return ExportError(
        f"In {source}, the {part} {verb} {given} {what}, and the transformer takes {taken}: they"
        " are of different models; exchange one of them."
    )
