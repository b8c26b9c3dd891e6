"""Token ids equal those of transformers."""

from __future__ import annotations

import pytest
from diffusers import StableDiffusion3Pipeline

import intaglio
from intaglio import _core

TEXTS = [
    "",
    "the dark boot",
    "  The\tDARK  boot!",
    "naïve café 漢字 🥾",
    "boot " * 40,
    "<|endoftext|>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_transformers(
    forked: intaglio.Pipeline, sd3_pipeline: StableDiffusion3Pipeline, text: str
) -> None:
    for name, encoder in forked.bundle.prompt.encoders.items():
        tokenizer = _core.load_tokenizer(forked.bundle.folder / encoder.tokenizer)
        theirs = getattr(sd3_pipeline, name.replace("text_encoder", "tokenizer"))
        expected = theirs(
            text, padding="max_length", max_length=encoder.max_length, truncation=True
        ).input_ids
        assert tokenizer.encode(text, encoder.max_length).ids == expected


def test_lone_surrogates_are_refused(forked: intaglio.Pipeline) -> None:
    encoder = next(iter(forked.bundle.prompt.encoders.values()))
    tokenizer = _core.load_tokenizer(forked.bundle.folder / encoder.tokenizer)
    with pytest.raises(intaglio.InputError, match="UTF-8"):
        tokenizer.encode("\udc80", 8)
