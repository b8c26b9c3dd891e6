"""A cache of prompt embeddings that evicts the least recently used ones."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio import Bundle, Pipeline, PromptEmbeddings

# The arrays of one text's embedding, by their names in PromptEmbeddings.
_PARTS = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")


def encoder_hash(bundle: Bundle) -> str:
    """Return a hash that identifies the bundle's text encoders.

    It covers the SHA-256 of their files and the manifest's description of the prompt, so bundles of
    one model in different layouts have the same hash.
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
    """The arrays of one text, None where the model has no such input, and the notes about it."""

    parts: tuple[Any, ...]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts if part is not None)


class EmbeddingCache:
    """Embeddings by text and encoders, up to `capacity` bytes. May be used from any thread.

    Attributes:
        nbytes: size of the cached arrays.
        hits: lookups that found an embedding. misses: lookups that had to encode the text.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[tuple[str, str], TextEmbedding] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0
        self.hits = 0
        self.misses = 0

    def embed(
        self, pipeline: Pipeline, encoders: str, prompt: str, negative_prompt: str
    ) -> tuple[PromptEmbeddings, list[str]]:
        """Return the embeddings that `pipeline.embed` gives for the two texts, and its notes.

        `encoders` is the `encoder_hash` of the pipeline's bundle.
        """
        texts = [self._one(pipeline, encoders, text) for text in (prompt, negative_prompt)]
        arrays = {
            prefix + name: part
            for prefix, text in zip(("", "negative_"), texts, strict=True)
            for name, part in zip(_PARTS, text.parts, strict=True)
        }
        notes = [*texts[0].notes]
        # Only at its start, since a note quotes the text.
        notes += [note.replace("the prompt", "the negative prompt", 1) for note in texts[1].notes]
        return PromptEmbeddings(arrays.pop("prompt_embeds"), **arrays), notes

    def _one(self, pipeline: Pipeline, encoders: str, text: str) -> TextEmbedding:
        key = encoders, text
        with self._lock:
            if found := self._entries.get(key):
                self._entries.move_to_end(key)
                self.hits += 1
                return found
            self.misses += 1
        # Call the core, which returns its notes; `Pipeline.embed` would issue them as warnings.
        embeds = pipeline._core.embed(text)
        parts = tuple(getattr(embeds, name) for name in _PARTS)
        embedding = TextEmbedding(parts, tuple(embeds.notes))
        with self._lock:
            if key not in self._entries:
                self._entries[key] = embedding
                self.nbytes += embedding.nbytes
            while self.nbytes > self._capacity:
                self.nbytes -= self._entries.popitem(last=False)[1].nbytes
        return embedding
