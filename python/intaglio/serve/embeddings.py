"""Prompt embeddings that are kept, the least recently used going first."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio import Bundle, Pipeline, PromptEmbeds

# The parts of one text's embedding, as PromptEmbeds names them.
_PARTS = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")


def encoder_hash(bundle: Bundle) -> str:
    """What tells text encoders apart: SHA-256 over their files' and how the manifest joins them.

    Two bundles of one model, say in either layout, have the same.
    """
    assert bundle.prompt
    manifest = json.loads((bundle.folder / "bundle.json").read_text("utf-8"))
    encoders = bundle.prompt.encoders.values()
    paths = [path for encoder in encoders for path in (encoder.graph.path, encoder.tokenizer)]
    folders = {Path(path).parts[0] for path in paths}
    files = {
        path: file["sha256"]
        for path, file in manifest["files"].items()
        if Path(path).parts[0] in folders
    }
    described = json.dumps([manifest["prompt"], files], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


@dataclass(frozen=True)
class TextEmbedding:
    """One text's arrays, None where the model has no such input, and what is to be said of it."""

    parts: tuple[Any, ...]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts if part is not None)


class EmbeddingCache:
    """Embeddings by text and encoders, up to so many bytes of arrays; for any thread.

    Attributes:
        nbytes: of the arrays that are kept.
        hits: lookups of what was kept. misses: of what had to be encoded.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[tuple[str, str], TextEmbedding] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0
        self.hits = 0
        self.misses = 0

    def embed(
        self, pipeline: Pipeline, encoders: str, prompt: str, negative_prompt: str
    ) -> tuple[PromptEmbeds, list[str]]:
        """What `pipeline.embed` gives for the two texts, and its notes.

        `encoders` is the bundle's `encoder_hash`.
        """
        texts = [self._one(pipeline, encoders, text) for text in (prompt, negative_prompt)]
        arrays = {
            prefix + name: part
            for prefix, text in zip(("", "negative_"), texts, strict=True)
            for name, part in zip(_PARTS, text.parts, strict=True)
        }
        notes = [*texts[0].notes]
        notes += [note.replace("the prompt", "the negative prompt") for note in texts[1].notes]
        return PromptEmbeds(arrays.pop("prompt_embeds"), **arrays), notes

    def _one(self, pipeline: Pipeline, encoders: str, text: str) -> TextEmbedding:
        key = encoders, text
        with self._lock:
            if found := self._kept.get(key):
                self._kept.move_to_end(key)
                self.hits += 1
                return found
            self.misses += 1
        # The core's, whose notes are a list; the front end's warns.
        embeds = pipeline._core.embed(text)
        parts = tuple(getattr(embeds, name) for name in _PARTS)
        embedding = TextEmbedding(parts, tuple(embeds.notes))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = embedding
                self.nbytes += embedding.nbytes
            while self.nbytes > self._capacity:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes
        return embedding
